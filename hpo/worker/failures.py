"""What ends an attempt: the configuration's own doing, or the machine's; and when to trust a machine no more."""

import errno
from typing import Literal

from hpo.errors import Problem, StorageError, Unwritable
from model.errors import is_device_fault, is_out_of_memory

FailureKind = Literal["ours", "disk", "device", "oom", "error"]

DISK_ERRNOS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EFBIG, errno.EIO)
MAX_FAILURES_IN_A_ROW = 3  # failures of one kind after which a worker is quarantined


def classify_failure(error: BaseException) -> FailureKind:
    """Return whose failure an exception is.

    ours: the storage's or the user's, about which no trial is to blame. disk, device: the machine's, which another
    attempt may not meet. oom, error: the configuration's, which would fail again in the same way.
    """
    if isinstance(error, Unwritable) or (isinstance(error, OSError) and error.errno in DISK_ERRNOS):
        return "disk"
    if isinstance(error, StorageError | Problem):
        return "ours"
    if is_out_of_memory(error):
        return "oom"
    return "device" if is_device_fault(error) else "error"


class CircuitBreaker:
    """Counts a worker's failures of one kind in a row."""

    def __init__(self) -> None:
        self._kind, self._n = "", 0

    def failed(self, kind: str) -> bool:
        """Count a failure; return whether the worker is to be quarantined."""
        self._n = self._n + 1 if kind == self._kind else 1
        self._kind = kind
        return self._n >= MAX_FAILURES_IN_A_ROW

    def well(self) -> None:
        """Forget the failures: a trial has ended as trials should."""
        self._kind, self._n = "", 0

    def half(self) -> None:
        """Trust the machine once: one more failure of the kind, and it is quarantined again."""
        self._n = MAX_FAILURES_IN_A_ROW - 1

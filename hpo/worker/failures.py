"""Classify failures of a training run, and decide when a machine is no longer trusted."""

import errno
from typing import Literal

from hpo.errors import Problem, StorageError, Unwritable
from model.errors import is_device_fault, is_out_of_memory

FailureKind = Literal["external", "disk", "device", "oom", "error"]

DISK_ERRNOS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EFBIG, errno.EIO)
MAX_FAILURES_IN_A_ROW = 3  # failures of one kind after which a worker is quarantined


def classify_failure(error: BaseException) -> FailureKind:
    """Return the kind of a failure.

    external: a failure of the storage or a mistake of the user. No trial caused it.
    disk, device: a failure of the machine. Another attempt may succeed.
    oom, error: a failure of the configuration. Another attempt would fail in the same way.
    """
    if isinstance(error, Unwritable) or (isinstance(error, OSError) and error.errno in DISK_ERRNOS):
        return "disk"
    if isinstance(error, StorageError | Problem):
        return "external"
    if is_out_of_memory(error):
        return "oom"
    return "device" if is_device_fault(error) else "error"


class CircuitBreaker:
    """Counts consecutive failures of one kind on this machine."""

    def __init__(self) -> None:
        self._kind, self._count = "", 0

    def record_failure(self, kind: str) -> bool:
        """Count a failure; return whether the worker must be quarantined."""
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        return self._count >= MAX_FAILURES_IN_A_ROW

    def reset(self) -> None:
        """Set the count to zero, because a trial finished without a failure."""
        self._kind, self._count = "", 0

    def half_open(self) -> None:
        """Allow one more attempt: one further failure of this kind quarantines the worker again."""
        self._count = MAX_FAILURES_IN_A_ROW - 1

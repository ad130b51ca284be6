"""The cache directory: its location, locks and atomic writes."""

import errno
import fcntl
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import CacheError

SILENT_S = 2.0  # seconds after which a process that waits for a lock says so


def cache_root() -> Path:
    """Return the directory of prepared and downloaded data: $HPO_CACHE, or hpo in the user's cache directory."""
    if os.environ.get("HPO_CACHE"):
        return Path(os.environ["HPO_CACHE"]).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "hpo"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a machine-wide lock on the creation of `path`. The system releases it when the process ends.

    Raises:
        CacheError: the directory is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent / f".{path.name}.lock"
        lock = open_lock(name)
    except OSError as error:
        raise CacheError(
            f"data: cannot write in {path.parent}: {error.strerror}; set HPO_CACHE to a writable directory"
        ) from None
    text = f"waiting for another process, which prepares {path}; `fuser {shlex.quote(str(name))}` shows it"
    try:
        wait_for_lock(lock, lambda: print(text, file=sys.stderr))
        yield
    finally:
        os.close(lock)


def open_lock(path: Path) -> int:
    """Return the descriptor of a lock file, which is created if it is missing.

    Raises:
        OSError: the file cannot be opened. It is never a link, which another user of the folder may have made.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def wait_for_lock(lock: int, note: Callable[[], None]) -> None:
    """Lock an open file.

    note: called once, after SILENT_S seconds in which another process has held the lock.
    """
    deadline = time.monotonic() + SILENT_S
    while time.monotonic() < deadline:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.05)
    note()
    fcntl.flock(lock, fcntl.LOCK_EX)


@contextmanager
def atomic_write(target: Path, sync: bool = False) -> Iterator[Path]:
    """Yield a path beside `target` for writing, and rename it to `target` at the end of the block.

    Other processes see the old file or the complete new one. If the block raises, the path is removed and `target`
    stays as it is. This is the only place where hpo and model replace a file.

    sync: write file and folder to the disk, so that the new file is complete after a power failure. It takes about
        10 ms on a disk, so files that a later run writes again are not synced.

    Raises:
        OSError: the file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    # A new file, because another user of the folder may have made a link of this name.
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield part
        if sync:
            fsync(part)
        part.replace(target)
        if sync:
            fsync(target.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Write a file or a folder to the disk.

    Raises:
        OSError: the disk refuses it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def write_whole(target: Path, chunks: Iterable[bytes]) -> Path:
    """Write a file of the cache atomically and return its path.

    chunks: content of the file, in order.

    Raises:
        CacheError: the directory is not writable.
    """
    try:
        with atomic_write(target, sync=True) as part:
            with part.open("wb") as file:
                file.writelines(chunks)
            part.chmod(0o644)  # several users may share a cache
    except OSError as error:
        raise CacheError(
            f"data: cannot write {target}: {error.strerror}; set HPO_CACHE to a writable directory"
        ) from None
    return target

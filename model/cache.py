"""The cache folder: its place, its locks, files written whole."""

import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import CacheError


def cache_root() -> Path:
    """Return the folder of prepared and downloaded data: $HPO_CACHE, else the user's cache folder."""
    if os.environ.get("HPO_CACHE"):
        return Path(os.environ["HPO_CACHE"]).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "hpo"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the machine-wide lock on making `path`; it goes with the process, however that ends.

    Raises:
        CacheError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.parent / f".{path.name}.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise CacheError(
            f"data: cannot write in {path.parent}: {error.strerror}; set HPO_CACHE to a folder that can be written to"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(target: Path, pieces: Iterable[bytes]) -> Path:
    """Write a file beside its place and rename it, so that nobody ever sees half of it.

    Raises:
        CacheError: the folder cannot be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as file:
            try:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.chmod(file.name, 0o644)  # a temporary file is private, a cache may be shared
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise CacheError(f"data: cannot write {target}: {error.strerror}; set HPO_CACHE") from None
    return target

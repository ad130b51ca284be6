"""Folders and files of a study: runs/<study>/{study.yaml, best.yaml, trials/0007/{config.yaml, metrics.jsonl, ...}}."""

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from hpo.config.names import check_folder_name
from hpo.errors import Unwritable, WorkFailed

OWNER = ".study"  # file in a run folder that holds the uid of its study

PROBE_BYTES = 2**20  # size of a file whose writing is tested, if the size of the real one is not known


def study_folder(out: Path, name: str, uid: str) -> Path:
    """Return the run folder of a study: out/NAME, or out/NAME-UID if out/NAME belongs to another study.

    Two storages may hold studies of one name and share `out`. A file in the folder says to which study it belongs.
    Folders of earlier versions of hpo have no such file.

    name: the first name of the study, which it keeps here when it is renamed. uid: its uid, "" if it has none yet.

    Raises:
        Problem: The name or uid, which the storage holds, is not part of the name of a folder in `out`.
    """
    check_folder_name(name)
    check_folder_name(f"{name}-{uid}")
    own_folder = _second_folder(out, name, uid)
    if uid and _owner(own_folder) == uid:
        return own_folder
    return out / name if not uid or _owner(out / name) in ("", uid) else own_folder


def claim_folder(out: Path, name: str, uid: str, is_new: bool = False) -> Path:
    """Return the run folder of a study, and write into the folder that it belongs to this study.

    is_new: whether the study has just been created. Trials in a folder without an owner are then of another study.
    The mark is not written if the disk is full; the next process writes it.
    """
    folder = study_folder(out, name, uid)
    if is_new and not _owner(folder) and any((folder / "trials").glob("*")):
        folder = _second_folder(out, name, uid)
    if not _owner(folder):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / OWNER).open("x") as file:  # fails if another process has just written it
                file.write(uid + "\n")
    return study_folder(out, name, uid)


class FolderGuard:
    """Notices that the run folder of a study was removed while the study ran."""

    def __init__(self, folder: Path, uid: str) -> None:
        self.folder, self.uid = folder.absolute(), uid
        self._was_there = _owner(folder) == uid  # not if the disk was full

    def check(self) -> None:
        """Check that the folder still exists and belongs to the study.

        Raises:
            WorkFailed: The folder was removed, or replaced by that of another study.
        """
        try:
            is_there = (self.folder / OWNER).read_text().strip() == self.uid
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        except OSError:  # for example an I/O error, which says nothing about the folder
            return
        if self._was_there and not is_there:
            raise WorkFailed(
                f"{self.folder}: the run folder was removed while the study ran; the storage has every reported value, "
                "and the next launch continues the study; interrupted trials then start again"
            )


def _second_folder(out: Path, name: str, uid: str) -> Path:
    return out / f"{name}-{uid[:8]}"


def _owner(folder: Path) -> str:
    """Return the uid of the study to which a run folder belongs, "" if the folder does not exist or names none."""
    try:
        return (folder / OWNER).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial in the run folder of its study."""
    return folder / "trials" / f"{number:04d}"


def artifact_folder(out: Path) -> Path:
    """Return the folder of the files that `hpo report` attaches to studies and trials."""
    return out / "artifacts"


def write_file(path: Path, text: str) -> None:
    """Replace the content of a file, completely or not at all.

    Raises:
        Unwritable: The file cannot be written; the message names it.
    """
    with _replaced(path, len(text.encode())) as part:
        part.write_text(text, "utf-8")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file, completely or not at all.

    Raises:
        Unwritable: The file cannot be written; the message names it.
    """
    with _replaced(path, source.stat().st_size) as part:
        shutil.copyfile(source, part)


def append_error_log(folder: Path, attempt: int, text: str) -> None:
    """Append the traceback of an attempt at a trial to its stderr.log, unless the disk does not allow it."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with open_log(folder / "stderr.log") as file:
            file.write(f"attempt {attempt}:\n{text.rstrip()}\n")


def open_log(path: Path) -> TextIO:
    """Open a file to append to it, but never the target of a link: another user of the folder may have made the link.

    Raises:
        OSError: the file cannot be opened, or it is a link.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return open(os.open(path, flags, 0o666), "a", encoding="utf-8", errors="backslashreplace")


def set_aside_folder(path: Path) -> None:
    """Rename a folder that stands in the place of a file of a trial, so that the file can be written."""
    if path.is_dir() and not path.is_symlink():
        names = (path.with_name(f"{path.name}.damaged{n or ''}") for n in range(1000))
        with writing(path):
            path.rename(next(name for name in names if not name.exists()))


def can_write(path: Path, n_bytes: int) -> bool:
    """Return whether a file of this size can be written to a path. An existing file stays as it is.

    n_bytes: 0 if the size is not known; then the test writes PROBE_BYTES.
    """
    probe = path.with_name(f".probe.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open("ab"):  # fails for a file of another owner, and for a folder in place of the file
                pass
        probe.unlink(missing_ok=True)  # it may be a link that another user has made
        with probe.open("xb") as file:
            for start in range(0, n_bytes or PROBE_BYTES, PROBE_BYTES):
                file.write(bytes(min(PROBE_BYTES, (n_bytes or PROBE_BYTES) - start)))
            os.fsync(file.fileno())  # network file systems report a full disk only now
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def to_json_value(value: Any) -> Any:
    """Convert a value to one that JSON can hold: NaN and infinity become None, numbers of other libraries floats."""
    if isinstance(value, bool | str | int) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(inner) for inner in value]
    if hasattr(value, "__float__"):
        number = float(value)
        return number if math.isfinite(number) else None
    return str(value)


@contextmanager
def writing(path: Path, n_bytes: int = 0) -> Iterator[None]:
    """Turn an OSError into the error that users see, and that a worker does not blame on the trial.

    n_bytes: size of the file, 0 if it is not known.

    Raises:
        Unwritable: The block has raised an OSError; the message names the file.
    """
    try:
        yield
    except OSError as error:
        n_bytes = n_bytes or getattr(error, "n_bytes", 0)
        raise Unwritable(f"cannot write {path}: {error.strerror or error}", path, n_bytes) from None


@contextmanager
def _replaced(path: Path, n_bytes: int) -> Iterator[Path]:
    """Yield a path whose file replaces `path` at the end of the block."""
    from model.cache import atomic_write  # imported here, so that `hpo show` reads metrics without the trainer

    with writing(path, n_bytes), atomic_write(path) as part:
        yield part

"""Find study files, bases and ledgers of claims: in the current folder, in ./studies and in the package."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hpo.config.validation import nearest
from hpo.errors import Problem

LEDGER = re.compile(r"^claims:", re.M)


def shipped_folder() -> Path:
    """Return the folder of the study files that ship with the package. Their bases are in its subfolder `bases`."""
    inside = Path(__file__).parents[1] / "studies"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "studies"


def list_studies(folder: Path) -> list[Path]:
    """Return the study files of a folder, without ledgers of claims."""
    return [path for path in sorted(folder.glob("*.yaml")) if not is_ledger(path)]


def is_ledger(path: Path) -> bool:
    """Return whether a file is a ledger of claims: a file with the key `claims`."""
    try:
        return LEDGER.search(path.read_text("utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return False


def find_study(study: str) -> Path:
    """Return the file of a study or ledger, given by path or by name.

    A name is searched in the current folder, in ./studies and in the shipped folder.

    Raises:
        Problem: there is no such file.
    """
    folders = [Path(), Path("studies"), shipped_folder()]
    names = sorted({path.stem for folder in folders[1:] for path in list_studies(folder)})
    try:
        return _find_file("study", study, "study", folders, names)
    except Problem:
        if study not in _base_names():
            raise
        use = f"`base: {{from: {study}}}` in a study file, or `{shlex.join(['hpo', 'train', study])}`"
        raise Problem(f"study: {study} must be a study, got a base; use {use}") from None


def find_base(base: str, key: str) -> Path:
    """Return the file of a base, given by path or by name.

    A name is searched in ./studies/bases and in the shipped bases. key: name of the key in messages.

    Raises:
        Problem: there is no such file.
    """
    return _find_file("base", base, key, [Path("studies/bases"), shipped_folder() / "bases"], _base_names())


def find_ledger(ledger: str) -> Path:
    """Return the file of a ledger of claims, given by path or by name as in `find_study`.

    Raises:
        Problem: there is no such file, or the file is not a ledger.
    """
    folders = [Path(), Path("studies"), shipped_folder()]
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml") if is_ledger(path)})
    path = _find_file("ledger", ledger, "--ledger", folders, names)
    if not is_ledger(path):
        raise Problem(
            f"--ledger: must be a ledger of claims, a file with the key `claims` at the start of a line, got {path}"
        )
    return path


def _base_names() -> list[str]:
    return sorted({path.stem for folder in (Path("studies"), shipped_folder()) for path in folder.glob("bases/*.yaml")})


def _find_file(kind: str, name: str, key: str, folders: Sequence[Path], names: Sequence[str]) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not _is_file(Path(name)):
            raise Problem(f"{key}: no such file: {name}{nearest(Path(name).stem, names)}")
        return Path(name)
    for folder in folders:
        if name and _is_file(folder / f"{name}.yaml"):
            return folder / f"{name}.yaml"
    known = f"there are {', '.join(names)}; or use the path of a file"
    raise Problem(f"{key}: no {kind} {name!r}{nearest(name, names)} ({known})")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False

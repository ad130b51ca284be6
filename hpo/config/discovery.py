"""Where studies, bases and ledgers of claims lie: in the current folder, in ./studies, in the package."""

import re
from collections.abc import Sequence
from pathlib import Path

from hpo.config.validation import nearest
from hpo.errors import Problem

LEDGER = re.compile(r"^claims:", re.M)


def shipped_folder() -> Path:
    """Return the folder of the study files that come with the package; its bases are in bases/."""
    inside = Path(__file__).parents[1] / "studies"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "studies"


def list_studies(folder: Path) -> list[Path]:
    """Return the study files of a folder: a ledger of claims is none."""
    return [path for path in sorted(folder.glob("*.yaml")) if not is_ledger(path)]


def is_ledger(path: Path) -> bool:
    """Return whether a file is a ledger of claims, by its key `claims`."""
    try:
        return LEDGER.search(path.read_text("utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return False


def find_study(study: str) -> Path:
    """Return the file of a study or ledger given by path, or by name here, in ./studies or among the shipped ones.

    Raises:
        Problem: there is none.
    """
    folders = [Path(), Path("studies"), shipped_folder()]
    names = sorted({path.stem for folder in folders[1:] for path in list_studies(folder)})
    try:
        return _find_file("study", study, "study", folders, names)
    except Problem:
        if study not in _base_names():
            raise
        use = f"`base: {{from: {study}}}` in a study file, or `hpo train {study}`"
        raise Problem(f"study: {study} is a base, not a study: {use}") from None


def find_base(base: str, key: str) -> Path:
    """Return the file of a base given by path, or by name in ./studies/bases or among the shipped ones.

    key: what to call it in a message.

    Raises:
        Problem: there is none.
    """
    return _find_file("base", base, key, [Path("studies/bases"), shipped_folder() / "bases"], _base_names())


def find_ledger(ledger: str) -> Path:
    """Return the file of a ledger of claims given by path, or by name here, in ./studies or among the shipped ones.

    Raises:
        Problem: there is none, or the file is another one.
    """
    folders = [Path(), Path("studies"), shipped_folder()]
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml") if is_ledger(path)})
    path = _find_file("ledger", ledger, "--ledger", folders, names)
    if not is_ledger(path):
        raise Problem(f"--ledger: {path} is no ledger of claims: it has no key `claims` at the start of a line")
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
    there = f"there are {', '.join(names)}; or give the path of a file"
    raise Problem(f"{key}: no {kind} {name!r}{nearest(name, names)} ({there})")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name too long to be one
        return False

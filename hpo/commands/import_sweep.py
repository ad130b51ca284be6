"""`hpo import` of a file that describes a search: write a study file."""

from pathlib import Path

from pydantic import ValidationError

from hpo.config.validation import error_messages
from hpo.console import say, show
from hpo.errors import Problem
from hpo.foreign.study_text import study_text
from hpo.foreign.sweep import convert_sweep
from hpo.study.spec import StudyFile


def import_sweep(path: Path, output: Path | None) -> None:
    """Write the study file of a W&B sweep, and print what differs.

    output: the file to write, None for standard output.

    Raises:
        Problem: the file cannot be read or converted, or the output exists.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{path}: cannot be read: {error}") from None
    found = convert_sweep(text, str(path))
    try:
        StudyFile.model_validate(found.tree)
    except ValidationError as error:
        raise Problem(*(f"{path}: {line}" for line in error_messages(error, StudyFile))) from None
    write_study(study_text(found.header, found.tree, found.comments), output)
    for note in found.notes:
        say(f"note: {note}")
    if output is not None:
        say(f"{output}: written; next: `hpo check {output}`")


def write_study(text: str, output: Path | None) -> None:
    """Write a new study file, or print it.

    Raises:
        Problem: the file exists or cannot be written.
    """
    if output is None:
        show(text, end="")
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Problem(f"--output: must be a new file, got {output}, which exists; use another name") from None
    except OSError as error:
        raise Problem(f"--output: {output} cannot be written: {error.strerror}") from None

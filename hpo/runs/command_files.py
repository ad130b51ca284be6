"""The files of a command in the folder of its trial.

files/               HPO_DIR, for the script; `checkpoint` in it is what the script resumes from
params.yaml, .json   the parameters, for the script
output.log           what the script prints, and output.first.log and output.previous.log if that is long
reports-N.jsonl      what attempt N has reported with `hpo.current_trial()`, whose other side is `hpo.trial`
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FILES, CHECKPOINT, OUTPUT = "files", "checkpoint", "output.log"
LINES, TAIL_BYTES = 20, 16 * 2**10  # of an output that are shown


@dataclass(frozen=True)
class TrialPlace:
    """The trial that a lane trains. rung: the last rung that an earlier attempt has reported. seconds: its time."""

    study: str
    number: int
    attempt: int
    folder: Path
    rung: int = 0
    seconds: float = 0.0


def reports_file(place: TrialPlace) -> Path:
    """Return the file to which `hpo.current_trial()` writes in this attempt. Later attempts have others, so that a
    process that has outlived its attempt cannot report for them."""
    return place.folder / f"reports-{place.attempt}.jsonl"


def stop_file(reports: Path) -> Path:
    """Return the file whose existence tells `should_stop` to return true."""
    return reports.with_suffix(".stop")


def has_checkpoint(folder: Path) -> bool:
    """Return whether the script of a trial has saved what it can resume from. folder: of the trial."""
    with suppress(OSError):
        return (folder / FILES / CHECKPOINT).exists()
    return False


def last_output(folder: Path) -> list[str]:
    """Return the last lines that the command of a trial printed, [] if there are none. folder: of the trial."""
    with suppress(OSError), (folder / OUTPUT).open("rb") as file:
        file.seek(max(0, (folder / OUTPUT).stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()[-LINES:]
    return []

"""Options and arguments that several commands share, and the conversions of their values."""

from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hpo.config.outputs import output_problem
from hpo.console import Format, command_line, say
from hpo.errors import Problem
from hpo.runs.resources import AUTO_PACK
from hpo.transfer.rule import Rule


def valid_path(path: Path | None) -> Path | None:
    """Return the path that the user typed.

    Raises:
        typer.BadParameter: no file system accepts the path, for example because a name has 300 letters.
    """
    try:
        if path is not None:
            path.exists()
    except OSError as error:
        raise typer.BadParameter(f"{error.strerror}, got {str(path)!r:.60}") from None
    return path


def output_file(path: Path | None) -> Path | None:
    """Return the path of a file to write.

    Raises:
        typer.BadParameter: the path cannot be written, or it is a file that no command should replace.
    """
    if valid_path(path) is not None and path is not None and (problem := output_problem(path)):
        raise typer.BadParameter(problem)
    return path


StudyName = Annotated[
    str | None, typer.Option(help="Name of the study. Can be omitted if the storage holds exactly one search.")
]
OutputFormat = Annotated[Format, typer.Option(help="Output format.")]
Out = Annotated[Path, typer.Option(help="Folder that holds the files of all runs.", callback=valid_path)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Set a field of the configuration. Can be repeated."),
]
Place = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="data.path=PATH",
        help="Path of the data on this machine, if it differs from the path in the study.",
    ),
]
Pack = Annotated[
    int, typer.Option(min=1, help="Number of trials that one worker trains together in one process, as a pack.")
]


def pack_size(value: str | int) -> int:
    """Return the number of trials in a pack, 0 for `auto`.

    Raises:
        typer.BadParameter: the value is neither a number of at least 1 nor `auto`.
    """
    with suppress(ValueError):
        if int(value) >= 1 or value == AUTO_PACK:
            return int(value)
    if value == "auto":
        return AUTO_PACK
    raise typer.BadParameter(f"must be auto or a whole number of at least 1, got {value!r}")


PackOrAuto = Annotated[
    int,
    typer.Option(
        parser=pack_size,
        metavar="N|auto",
        help="Number of trials that one worker trains together in one process, as a pack. auto: the fastest number on "
        "this machine, by measurement.",
    ),
]
Config = Annotated[
    Path,
    typer.Argument(
        help="Configuration file as `hpo export` writes it, or the name of a base configuration.", callback=valid_path
    ),
]
AllowTrain = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-train",
        metavar="MODULE:NAME|COMMAND",
        help="Import this training function or configuration class, or run this command, even if only the storage "
        "names it. Can be repeated.",
    ),
]


class TrackerName(StrEnum):
    """The programs to which a launch can copy its trials."""

    mlflow = "mlflow"
    wandb = "wandb"
    tensorboard = "tensorboard"


class TrackChoice(StrEnum):
    """A tracker, or none of them."""

    mlflow = "mlflow"
    wandb = "wandb"
    tensorboard = "tensorboard"
    none = "none"


Track = Annotated[
    list[TrackChoice] | None,
    typer.Option(
        "--track",
        help="Copy each trial to this tracker, beside the training. Can be repeated. Default: the key track of the "
        "study.",
    ),
]
RuleOption = Annotated[
    Rule | None,
    typer.Option(
        help="Rule that carries the configuration over to another length, batch or size than that of the search. "
        "Default: copy."
    ),
]
By = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The objective that decides; required where the study has several objectives."),
]
CoolDown = Annotated[
    int | None,
    typer.Option(
        "--cool-down",
        metavar="RUNG",
        help="Export the shorter run that ends with the cool-down probe at this rung. Requires a wsd schedule.",
    ),
]
TrialNumber = Annotated[int, typer.Argument(help="Number of the trial.")]
RUNS = Path("runs")


def split_names(text: str) -> list[str]:
    """Return the parts of a comma-separated list, without spaces and empty parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def split_numbers(option: str, text: str | None) -> list[int] | None:
    """Return the parts of a comma-separated list of whole numbers, None for no list.

    Raises:
        Problem: a part is not a whole number.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in split_names(text)]
    except ValueError:
        raise Problem(
            f"{option}: must be whole numbers separated by commas, such as 64,128,256, got {text!r:.60}"
        ) from None


@dataclass(frozen=True)
class StorageOptions:
    """The options that name the storage."""

    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of the storage. Default: $HPO_STORAGE, otherwise sqlite:///runs/hpo.db. If the URL has a "
            "password, use --storage-file or $HPO_STORAGE, because all users of this machine can read this option."
        ),
    ] = None
    storage_file: Annotated[
        Path | None,
        typer.Option(
            help="File that holds the URL of the storage, readable only by you.", metavar="FILE", callback=valid_path
        ),
    ] = None


DEFAULT_STORAGE = StorageOptions()


def storage_url(options: StorageOptions) -> str:
    """Return the URL of the storage that --storage, --storage-file, $HPO_STORAGE or the default names.

    Raises:
        Problem: both options are given.
        StorageError: the text cannot be a URL or the name of a file, or the file of the URL cannot be read.
    """
    from hpo.storage.url import checked_url, has_no_password, others_can_read, read_url_file

    storage = options.storage
    if (file := options.storage_file) is not None:
        if storage is not None:
            raise Problem("--storage: must be omitted with --storage-file")
        storage = read_url_file(file)
        if not has_no_password(storage) and others_can_read(file):
            remedy = command_line("chmod", "600", file)
            say(f"warning: other users can read the password in {file}; `{remedy}` hides it")
    return checked_url(storage)


def open_to_read(storage: StorageOptions) -> Any:
    """Open the storage read-only, as a context manager."""
    from hpo.storage.engine import open_readonly

    return open_readonly(storage_url(storage))


def exit_with(status: int) -> None:
    """End the command with an exit status."""
    if status:
        raise typer.Exit(status)

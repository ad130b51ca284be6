"""Options and arguments that several commands share, and the conversions of their values."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hpo.console import Format


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


StudyName = Annotated[
    str | None, typer.Option(help="Name of the study. Can be omitted if the storage holds exactly one study.")
]
Storage = Annotated[
    str | None, typer.Option(help="URL of the storage. Default: $HPO_STORAGE, otherwise sqlite:///runs/hpo.db.")
]
OutputFormat = Annotated[Format, typer.Option(help="Output format.")]
Out = Annotated[Path, typer.Option(help="Folder that holds the files of all runs.", callback=valid_path)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Set a field of the configuration. Can be repeated."),
]
Pack = Annotated[
    int, typer.Option(min=1, help="Number of trials that one worker trains together in one process, as a pack.")
]
Config = Annotated[
    Path,
    typer.Argument(
        help="Configuration file as `hpo export` writes it, or the name of a base configuration.", callback=valid_path
    ),
]
TrialNumber = Annotated[int, typer.Argument(help="Number of the trial.")]
RUNS = Path("runs")


def split_names(text: str) -> list[str]:
    """Return the parts of a comma-separated list, without spaces and empty parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def storage_url(storage: str | None) -> str:
    """Return the URL of the storage that --storage, $HPO_STORAGE or the default names.

    Raises:
        StorageError: the text cannot be a URL or the name of a file.
    """
    from hpo.errors import StorageError
    from hpo.storage.url import default_url, masked_url, normalise_url, sqlite_file

    url = default_url(storage)
    try:
        url.encode()
        if file := sqlite_file(normalise_url(url)):
            file.is_file()
    except StorageError:
        return url  # opening the storage raises the same error
    except (OSError, ValueError) as error:  # the name is too long, or its bytes are not UTF-8
        reason = error.strerror if isinstance(error, OSError) else "must be text in UTF-8"
        raise StorageError(f"storage: {reason}, got {masked_url(url)!r:.60}") from None
    return url


def open_to_read(storage: str | None) -> Any:
    """Open the storage read-only, as a context manager."""
    from hpo.storage.engine import open_readonly

    return open_readonly(storage_url(storage))


def exit_with(status: int) -> None:
    """End the command with an exit status."""
    if status:
        raise typer.Exit(status)

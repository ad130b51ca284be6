"""What the commands share: their common options, and how they open a storage."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hpo.console import Format


def possible(path: Path | None) -> Path | None:
    """Refuse a path that no file system takes, such as one with a name of 300 letters."""
    try:
        if path is not None:
            path.exists()
    except OSError as error:
        raise typer.BadParameter(f"{error.strerror}, got {str(path)!r:.60}") from None
    return path


Study = Annotated[str | None, typer.Option(help="Name of the study; may be left out where the storage holds one.")]
Storage = Annotated[str | None, typer.Option(help="URL; else $HPO_STORAGE, else sqlite:///runs/hpo.db.")]
Print = Annotated[Format, typer.Option(help="How to print.")]
Out = Annotated[Path, typer.Option(help="Folder of the runs.", callback=possible)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="A field of the configuration.")]
Pack = Annotated[int, typer.Option(min=1, help="Trials that a worker trains side by side.")]
Config = Annotated[
    Path, typer.Argument(help="Configuration, as `hpo export` writes it, or name of a base.", callback=possible)
]
Number = Annotated[int, typer.Argument(help="Number of the trial.")]
RUNS = Path("runs")


def url(storage: str | None) -> str:
    """Return the URL of the storage that the command line means.

    Raises:
        StorageError: it holds what no URL or name of a file can hold.
    """
    from hpo.errors import StorageError
    from hpo.storage.url import default_url, masked_url, normalise_url, sqlite_file

    found = default_url(storage)
    try:
        found.encode()
        if file := sqlite_file(normalise_url(found)):
            file.is_file()
    except StorageError:
        return found  # which is refused where it is opened
    except (OSError, ValueError) as error:  # a name that is too long; bytes that are no UTF-8
        why = error.strerror if isinstance(error, OSError) else "must be text in UTF-8"
        raise StorageError(f"storage: {why}, got {masked_url(found)!r:.60}") from None
    return found


def looking(storage: str | None) -> Any:
    """Open the storage to look at it."""
    from hpo.storage.engine import open_readonly

    return open_readonly(url(storage))


def leave(status: int) -> None:
    """End with this exit status."""
    if status:
        raise typer.Exit(status)

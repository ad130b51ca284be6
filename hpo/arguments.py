"""What the commands share: their common options, and how they open a storage."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hpo.output import Format

Study = Annotated[str | None, typer.Option(help="Name of the study; may be left out where the storage holds one.")]
Storage = Annotated[str | None, typer.Option(help="URL; else $HPO_STORAGE, else sqlite:///runs/hpo.db.")]
Print = Annotated[Format, typer.Option(help="How to print.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="A field of the configuration.")]
Out = Annotated[Path, typer.Option(help="Folder of the runs.")]
Pack = Annotated[int, typer.Option(min=1, help="Trials that a worker trains side by side.")]
Number = Annotated[int, typer.Argument(help="Number of the trial.")]
RUNS = Path("runs")


def url(storage: str | None) -> str:
    """Return the URL of the storage that the command line means."""
    from hpo.engine import default_url

    return default_url(storage)


def looking(storage: str | None) -> Any:
    """Open the storage to look at it."""
    from hpo.engine import look

    return look(url(storage))


def leave(status: int) -> None:
    """End with this exit status."""
    if status:
        raise typer.Exit(status)

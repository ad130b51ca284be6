"""The commands that weigh what a search found, by runs of their own: on fresh seeds, in pairs."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.arguments import RUNS, Out, Pack, Print, Storage, Study, leave, url
from hpo.output import Format

if TYPE_CHECKING:
    from hpo.launch import Options

commands = typer.Typer()


class Test(StrEnum):
    """The test of paired differences."""

    t = "t"
    wilcoxon = "wilcoxon"


Workers = Annotated[
    int, typer.Option(min=0, max=1024, help="Worker processes; 0: one, or one for each place on the GPUs.")
]
Gpus = Annotated[str, typer.Option(help="Numbers of the GPUs to use, such as 0,1.")]
PerGpu = Annotated[int, typer.Option(min=1, max=64, help="Workers on each GPU.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and end.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only what was found.")]
Plain = Annotated[bool, typer.Option("--plain", help="A line an event instead of a live table.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="Length of each run; else that of the search.")]
Name = Annotated[str | None, typer.Option("--as", metavar="NAME", help="Name of the study that these runs make.")]


def options(
    storage: str | None, workers: int, gpus: str, per_gpu: int, pack: int, out: Path, dry_run: bool, quiet: bool,
    plain: bool,
) -> "Options":  # fmt: skip
    """Return how to run a study, as `hpo launch` understands it."""
    from hpo.launch import Options

    return Options(
        study="",
        storage=url(storage),
        workers=workers,
        budget={},
        overrides=[],
        seed=None,
        gpus=[gpu.strip() for gpu in gpus.split(",") if gpu.strip()],
        per_gpu=per_gpu,
        on="local",
        address="",
        gpus_per_worker=0.0,
        pack=pack,
        out=out,
        dry_run=dry_run,
        quiet=quiet,
        plain=plain,
    )


@commands.command()
def confirm(
    study: Study = None,
    top: Annotated[int | None, typer.Option(min=1, help="Configurations to run again, the best first; else 3.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each, on seeds of their own; else 8.")] = None,
    tokens: Tokens = None,
    test: Annotated[Test | None, typer.Option(help="Test of the paired differences; else t.")] = None,
    name: Name = None,
    storage: Storage = None,
    workers: Workers = 0,
    gpus: Gpus = "",
    per_gpu: PerGpu = 1,
    pack: Pack = 1,
    out: Out = RUNS,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    plain: Plain = False,
    format: Print = Format.table,
) -> None:
    """Run the best configurations and the baseline again on fresh seeds, and say which is better, and by how much.

    A search's best value is the smallest of many noisy ones, so it flatters. Here each configuration meets the
    baseline in pairs: the same seed, so the same batches in the same order. The runs are a study of their own, to
    which more workers may come, and which goes on where it was when it is called again.
    """
    from hpo.confirm import Asked, confirm

    asked = Asked(study, top, seeds, tokens, name, None if test is None else test.value)
    how = options(storage, workers, gpus, per_gpu, pack, out, dry_run, quiet, plain)
    leave(confirm(asked, how, format))

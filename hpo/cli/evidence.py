"""The commands that weigh what a search found: by runs of their own, on fresh seeds, in pairs; and in a report."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.cli.options import RUNS, Out, Pack, Print, Storage, Study, leave, possible, url
from hpo.console import Format

if TYPE_CHECKING:
    from hpo.launcher.supervisor import Options

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
    from hpo.launcher.supervisor import Options

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
    from hpo.evidence.confirm import ConfirmRequest, run_confirmation

    asked = ConfirmRequest(study, top, seeds, tokens, name, None if test is None else test.value)
    how = options(storage, workers, gpus, per_gpu, pack, out, dry_run, quiet, plain)
    leave(run_confirmation(asked, how, format))


class Design(StrEnum):
    """Which combinations of the changes are run."""

    leave_one_out = "leave-one-out"
    add_one_in = "add-one-in"
    cumulative = "cumulative"
    factorial = "factorial"


@commands.command()
def ablate(
    study: Study = None,
    before: Annotated[
        str, typer.Option("--from", metavar="baseline|N|FILE", help="Configuration to begin from.")
    ] = "baseline",
    after: Annotated[
        str, typer.Option("--to", metavar="best|N|FILE", help="Configuration whose changes are tried.")
    ] = "best",
    design: Annotated[Design, typer.Option(help="Which combinations of the changes to run.")] = Design.leave_one_out,
    groups: Annotated[
        list[str] | None,
        typer.Option("--factor", metavar="NAME=FIELD,FIELD", help="Changes that are made together, as one factor."),
    ] = None,
    order: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Order of the changes, for a cumulative design; else the space's.")
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each, on seeds of their own; else 5.")] = None,
    tokens: Tokens = None,
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
    """Try the changes between two configurations one by one, and say which of them matter.

    leave-one-out: the target without each; add-one-in: the baseline with each; cumulative: one after the other;
    factorial: all combinations up to five changes, a fraction of them up to 16, with the interactions of pairs.
    Every combination is run with the same seeds; effects are differences of runs of one seed.
    """
    from hpo.evidence.ablate import AblateRequest, run_ablation

    names = [part.strip() for part in order.split(",") if part.strip()]
    asked = AblateRequest(study, before, after, design.value, groups or [], names, seeds, tokens, name)
    how = options(storage, workers, gpus, per_gpu, pack, out, dry_run, quiet, plain)
    leave(run_ablation(asked, how, format))


@commands.command()
def claims(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[IDS]...", help="Ids of claims, or reports, such as S001; else all.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=3, help="Pairs of runs of each; else those it asks for.")] = None,
    ledger: Annotated[str, typer.Option(help="Ledger of claims, by name or path.")] = "claims",
    listing: Annotated[bool, typer.Option("--list", help="List the claims and what their runs need, and end.")] = False,
    weighed: Annotated[bool, typer.Option("--weighed", help="Run no arms but those that enter the verdicts.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(callback=possible, help="File of what is found; else claims.json in ./docs if there, in ./runs."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(callback=possible, help="Write the page of all verdicts there, and end.")
    ] = None,
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
    """Run the tests of a ledger of claims, and say which hold, by how much, and on what.

    Each claim is a study of its own, claim-C000-01, with claim-C000-01-tune before it where a factor is chosen first.
    What is done is not run again; more seeds or arms go into a further study. The largest effects come first, and
    of all claims the arms that enter the verdict, before those that say what else may explain it.
    """
    from hpo.evidence.claims.command import ClaimsRequest, run_claims

    asked = ClaimsRequest(names or [], seeds, ledger, data, write, listing, weighed)
    how = options(storage, workers, gpus, per_gpu, pack, out, dry_run, quiet, plain)
    leave(run_claims(asked, how, format))


@commands.command()
def report(
    study: Study = None,
    storage: Storage = None,
    out: Out = RUNS,
    html: Annotated[Path | None, typer.Option(callback=possible, help="Write the page there.")] = None,
    pdf: Annotated[
        Path | None, typer.Option(callback=possible, help="Print the page there; needs a Chromium on this machine.")
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(callback=possible, help="Write all trials there, all curves beside it as F-curves.csv."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(callback=possible, help="Write all there: verdict, noise, study, trials, curves.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Show verdict, figures and files in the dashboard too.")
    ] = True,
) -> None:
    """Write what a study shows, as one page that needs no network; else to runs/STUDY/report.html.

    It opens with a verdict: the best against the baseline, how much of that is noise or luck, and whether it was
    confirmed. Figures, tables, and the commands that repeat it follow.
    """
    from hpo.report.build import Files, report

    report(url(storage), study, out, Files(html, pdf, csv, json), publish)

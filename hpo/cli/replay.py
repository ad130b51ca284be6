"""The command that simulates searches on recorded learning curves."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.cli.groups import Commands
from hpo.cli.options import (
    DEFAULT_STORAGE,
    AllowTrain,
    OutputFormat,
    StorageOptions,
    StudyName,
    output_file,
    storage_url,
    valid_path,
)
from hpo.cli.panels import EVIDENCE
from hpo.console import Format, say

if TYPE_CHECKING:
    from hpo.commands.replay import Replay

replay_commands = Commands()

CurvesFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=valid_path,
        help="YAML file that describes a CSV, JSONL or NPZ file of recorded curves, instead of a study.",
    ),
]
HtmlPage = Annotated[
    Path | None, typer.Option(callback=output_file, help="Write figures and tables to this HTML page.")
]


@dataclass(frozen=True)
class SimulationOptions:
    """The options that say which searches are simulated."""

    pruner: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|YAML",
            help="Pruner to try, for example percentile or '{name: percentile, percentile: 60}'. Can be repeated. "
            "Default: that of the study, otherwise none, median and asha.",
        ),
    ] = None
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|YAML",
            help="Sampler to try, with --world nearest or surrogate. Can be repeated. Default: the recorded "
            "configurations.",
        ),
    ] = None
    world: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Source of the curves: recorded (the trials in their order), shuffled (in random order), nearest "
            "(the nearest recorded run), surrogate (a model of the curves). Can be repeated.",
        ),
    ] = None
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of each search.")] = None
    runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Budget of each search: the tokens of this many full runs. Default: all trials of a study, with "
            "--sampler its tokens; 30 for other curves.",
        ),
    ] = None
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Simulated workers.")] = 4
    seeds: Annotated[int, typer.Option(min=1, help="Searches with each set of rules.")] = 20


@replay_commands.command(rich_help_panel=EVIDENCE, epilog="Example: hpo replay --study beta2_sweep --pruner percentile")
def replay(
    *,
    study: StudyName = None,
    curves: CurvesFile = None,
    given: SimulationOptions,
    html: HtmlPage = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    allow_train: AllowTrain = None,
    format: OutputFormat = Format.table,
) -> None:
    """Simulate other samplers and pruners on recorded curves.

    Nothing is trained. The samplers and pruners are those of a real search, and simulated workers report the recorded
    values. The command prints how many tokens each set of rules needs, and which share of the best tenth of the
    trials it ends too early:

    \b
    saved      share of the tokens of the same trials without pruning
    best       result of the best trial, mean over the searches
    ratio      tokens until the search is as good as random search without
               pruning at its end, over all tokens of random search
    reached    share of the pairs of searches whose ratio is at most 1
    regret     distance of the best trial from the best possible result
    best_lost  share of the best tenth of the trials that was ended
    unknown    trials that continue where the recorded curve ends

    The other columns are 95 % bootstrap intervals over seeds.
    """
    from hpo.commands.replay import ReplayRequest, print_replay, run_replay
    from hpo.config.permission import permit_options

    permit_options(allow_train or [])
    rules = (given.sampler or [], given.pruner or [], given.world or [])
    request = ReplayRequest(study, curves, *rules, given.trials, given.runs, given.workers, given.seeds)
    result = run_replay(storage_url(storage), request)
    print_replay(result, format)
    if html is not None:
        _write_page(result, html)


def _write_page(result: "Replay", file: Path) -> None:
    from hpo.report.replay_page import write_replay_page

    write_replay_page(result.curves, result.compared, result.notes, result.rows(), file)
    say(f"{file}: written")

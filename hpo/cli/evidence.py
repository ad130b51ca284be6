"""The commands that test a result with new runs: paired comparisons on seeds that the search did not use."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.groups import Commands, RunOptions
from hpo.cli.options import OutputFormat, Place, RuleOption, StudyName, exit_with, output_file, split_names, valid_path
from hpo.cli.panels import EVIDENCE
from hpo.console import Format, say

evidence_commands = Commands()


class TestName(StrEnum):
    """The test of paired differences."""

    t = "t"
    wilcoxon = "wilcoxon"


class DesignName(StrEnum):
    """Which combinations of the changes run."""

    leave_one_out = "leave-one-out"
    add_one_in = "add-one-in"
    cumulative = "cumulative"
    factorial = "factorial"


Tokens = Annotated[int | None, typer.Option(min=1, help="Tokens of each run. Default: as many as in the search.")]
ConfirmationName = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="Name of the study for these runs. Default: STUDY-confirm."),
]
AblationName = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="NAME",
        help="Name of the study for these runs. Default: STUDY-DESIGN, such as beta2_sweep-leave-one-out.",
    ),
]

Factors = Annotated[
    list[str] | None,
    typer.Option(
        "--factor", metavar="NAME=FIELD,FIELD", help="Treat the changes of these fields as one change. Can be repeated."
    ),
]
Order = Annotated[
    str,
    typer.Option(
        metavar="NAME,NAME", help="Order of the changes in a cumulative design. Default: the order of the space."
    ),
]
ResultsFile = Annotated[
    Path | None,
    typer.Option(
        callback=valid_path,
        help="File of the results. Default: claims.json in ./docs if that folder exists, otherwise in ./runs.",
    ),
]

Top = Annotated[
    int | None,
    typer.Option(min=1, help="Number of trials to re-run, from the best down. Default: 3, or 1 with --sequential."),
]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, help="Runs of each configuration. Default: 8, or at most 12 with --sequential."),
]
Sequential = Annotated[
    bool,
    typer.Option(
        "--sequential", help="Add pairs of runs only until the result is clear, at most as many as --seeds says."
    ),
]


@evidence_commands.command(rich_help_panel=EVIDENCE, epilog="Example: hpo confirm --study beta2_sweep --workers 4")
def confirm(
    *,
    study: StudyName = None,
    top: Top = None,
    seeds: Seeds = None,
    sequential: Sequential = False,
    tokens: Tokens = None,
    rule: RuleOption = None,
    test: Annotated[TestName | None, typer.Option(help="Test of the paired differences. Default: t.")] = None,
    name: ConfirmationName = None,
    overrides: Place = None,
    run: RunOptions,
    format: OutputFormat = Format.table,
) -> None:
    """Re-run the best trials and the baseline on new seeds.

    The best trial of a search looks better than it is, because it is the best of many noisy results. This command
    tests the difference from the baseline with paired runs. Both runs of a pair have the same seed, and the same
    batches in the same order. The runs form a separate study. More workers can join it, and a second call resumes it.

    With --sequential, the difference is tested after each pair from the third on. The command ends as soon as a trial
    is better, or a gain has become unlikely. The bounds hold for all these tests together: a trial without gain is
    called better with a probability of at most 2.5 %, as with a fixed number of pairs.

    With --tokens, the runs are longer or shorter than those of the search. The command prints what does not carry over
    to that length. The rule of --rule applies to the trials and to the baseline.
    """
    from hpo.evidence.confirm import ConfirmRequest, conclude_confirmation, run_confirmation

    request = ConfirmRequest(study, top, seeds, tokens, name, None if test is None else test.value, sequential, rule)
    options = run.launch_options(overrides=overrides or [])
    exit_with(run_confirmation(request, options, partial(conclude_confirmation, format=format)))


@evidence_commands.command(rich_help_panel=EVIDENCE, epilog="Example: hpo ablate --study beta2_sweep --workers 4")
def ablate(
    *,
    study: StudyName = None,
    before: Annotated[
        str, typer.Option("--from", metavar="baseline|N|FILE", help="Configuration without the changes.")
    ] = "baseline",
    after: Annotated[str, typer.Option("--to", metavar="best|N|FILE", help="Configuration with all changes.")] = "best",
    design: Annotated[
        DesignName, typer.Option(help="Which combinations of the changes to run.")
    ] = DesignName.leave_one_out,
    groups: Factors = None,
    order: Order = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each combination. Default: 5.")] = None,
    tokens: Tokens = None,
    rule: RuleOption = None,
    name: AblationName = None,
    overrides: Place = None,
    run: RunOptions,
    format: OutputFormat = Format.table,
) -> None:
    """Measure which changes between two configurations matter.

    The design selects which combinations of the changes run:

    \b
    leave-one-out  all changes except one
    add-one-in     one change
    cumulative     the first change, the first two changes, and so on
    factorial      all combinations for up to 5 changes, a fractional design
                   for 6 to 16; also estimates interactions of two changes

    All combinations run on the same seeds. An effect is a mean difference between runs of the same seed. With --tokens,
    --rule applies to both configurations before their changes are found.
    """
    from hpo.evidence.ablate import AblateRequest, run_ablation

    order_of = split_names(order)
    request = AblateRequest(study, before, after, design.value, groups or [], order_of, seeds, tokens, name, rule)
    exit_with(run_ablation(request, run.launch_options(overrides=overrides or []), format))


@evidence_commands.command(rich_help_panel=EVIDENCE, epilog="Example: hpo claims S002 --workers 4")
def claims(
    *,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IDS]...", help="Ids of claims or of reports, for example S001. Default: all claims."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=3, help="Pairs of runs for each claim. Default: the number in the file of claims.")
    ] = None,
    ledger: Annotated[str, typer.Option(help="Name or path of the ledger, the YAML file of claims.")] = "claims",
    listing: Annotated[bool, typer.Option("--list", help="List the claims and the runs that they need.")] = False,
    verdict_arms_only: Annotated[
        bool, typer.Option("--verdict-arms-only", help="Run only the arms that determine the verdicts.")
    ] = False,
    old_name: Annotated[
        bool, typer.Option("--weighed", hidden=True, help="Old name of --verdict-arms-only, until version 0.3.0.")
    ] = False,
    data: ResultsFile = None,
    write: Annotated[
        Path | None, typer.Option(callback=output_file, help="Write the page of all verdicts to this file, then exit.")
    ] = None,
    run: RunOptions,
    format: OutputFormat = Format.table,
) -> None:
    """Test the claims of a ledger and print a verdict on each.

    A ledger is a YAML file of claims. A claim compares arms: configurations that run on the same seeds. The runs of
    each claim form a study, for example claim-C000-01. If a setting must be tuned first, the study
    claim-C000-01-tune runs before the main study. Finished runs are reused. Additional seeds or arms run in an
    additional study. Claims of large effects run first. Arms that determine a verdict run before arms that only
    help to explain the effect.
    """
    from hpo.evidence.claims.command import ClaimsRequest, run_claims

    if old_name:
        say("note: --weighed is now --verdict-arms-only; version 0.3.0 removes the old name")
    request = ClaimsRequest(names or [], seeds, ledger, data, write, listing, verdict_arms_only or old_name)
    exit_with(run_claims(request, run.launch_options(), format))

"""`hpo transfer`: what carries over from short runs of small networks to long runs of large ones."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from hpo.cli.groups import Commands, RunOptions
from hpo.cli.options import OutputFormat, Place, StudyName, exit_with, split_numbers, storage_url
from hpo.cli.panels import EVIDENCE
from hpo.console import Format
from hpo.errors import Problem

transfer_commands = Commands()

Widths = Annotated[
    str | None,
    typer.Option(metavar="N,N", help="Widths to compare with --check. Default: 1, 2, 4 and 8 times the base width."),
]
Depths = Annotated[
    str | None,
    typer.Option(metavar="N,N", help="Depths to compare with --check. Default: 1, 2, 4 and 8 times the base depth."),
]

Target = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="PATH=VALUE,PATH=VALUE",
        help="Length and size of the long run: run.tokens, model.n_embd, model.n_layer. Default: as in the ladder.",
    ),
]
Cells = Annotated[
    int | None, typer.Option(min=2, max=16, help="Number of cells: pairs of a length and a size. Default: 4.")
]
LadderTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of all runs of the ladder together. Default: no limit.")
]
VerifySeeds = Annotated[
    int | None,
    typer.Option(
        min=1, help="Train the predicted, the copied and the nearest cell's configuration, on this many seeds."
    ),
]
LadderName = Annotated[
    str | None, typer.Option("--as", metavar="NAME", help="Name of the study of the ladder. Default: STUDY-transfer.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Coordinate check: measure activations of several widths and depths instead.")
]


@transfer_commands.command(
    rich_help_panel=EVIDENCE, epilog="Example: hpo transfer --study beta2_sweep --to run.tokens=8_000_000 --workers 4"
)
def transfer(
    *,
    study: StudyName = None,
    to: Target = None,
    ladder: Cells = None,
    budget_tokens: LadderTokens = None,
    verify: VerifySeeds = None,
    name: LadderName = None,
    check: Check = False,
    widths: Widths = None,
    depths: Depths = None,
    overrides: Place = None,
    run: RunOptions,
    format: OutputFormat = Format.table,
) -> None:
    """Predict the best configuration of a longer or larger run.

    The best configuration of short runs is usually not the best one of a long run. This command trains a ladder: runs
    of several shorter lengths and smaller sizes around the best configuration of a search. It fits how the optimum of
    each searched number moves with tokens and size, and predicts configuration and loss at the target, with 90 %
    intervals. The ladder is a study of its own. More workers can join it, and a second call resumes it, or predicts
    for another target.

    With --verify, the predicted configuration, the copied one and the best one of the nearest cell are trained at the
    target on new seeds, and compared in pairs as `hpo confirm` does.

    With --check, networks of several widths and depths train for 10 updates at the peak learning rate, on 3 seeds.
    Under model.parametrization mup or completep, the sizes of their activations should not depend on the width, and
    under completep not on the depth. The result is stored, and `hpo report` shows it.
    """
    if check:
        others = {"--to": to, "--ladder": ladder, "--budget-tokens": budget_tokens, "--verify": verify, "--as": name}
        _refuse(others, "must be omitted with --check")
        _check_coordinates(study, widths, depths, overrides or [], storage_url(run.storage), format)
        return
    _refuse({"--widths": widths, "--depths": depths}, "must be used with --check")
    from hpo.commands.transfer import TransferRequest, run_transfer

    ladder_request = TransferRequest(study, to, ladder, budget_tokens, verify, name)
    exit_with(run_transfer(ladder_request, run.launch_options(overrides=overrides or []), format))


def _check_coordinates(
    study: str | None, widths: str | None, depths: str | None, overrides: list[str], url: str, format: Format
) -> None:
    from hpo.commands.coordinates import CheckRequest, check_coordinates

    request = CheckRequest(study, split_numbers("--widths", widths), split_numbers("--depths", depths), overrides)
    exit_with(check_coordinates(request, url, format))


def _refuse(options: Mapping[str, Any], rule: str) -> None:
    """Raise an error if one of the options is given."""
    if given := [option for option, value in options.items() if value is not None]:
        raise Problem(*(f"{option}: {rule}" for option in given))

"""The command that compares two studies or two trials of a storage."""

from typing import Annotated

import typer

from hpo.cli.groups import Commands
from hpo.cli.options import DEFAULT_STORAGE, AllowTrain, OutputFormat, StorageOptions, StudyName, open_to_read
from hpo.cli.panels import INSPECT
from hpo.console import Format

compare_commands = Commands()

_SIDE = "Name of a study, number of a trial of --study, or STUDY:NUMBER for a trial of any study."


@compare_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo compare 0 7 --study beta2_sweep")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help=_SIDE)],
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    format: OutputFormat = Format.table,
    allow_train: AllowTrain = None,
) -> None:
    """Compare two studies or trials: fields, curves, verdict.

    The verdict tests the difference where both sides have runs with several seeds: repeats of the baseline, runs of an
    arm, or runs of `hpo confirm`. For two studies, their best trials and their baselines are compared.
    """
    from hpo.commands.compare import compare as compare_sides
    from hpo.config.permission import permit_options

    permit_options(allow_train or [])
    with open_to_read(storage) as store:
        compare_sides(store, a, b, study, format)

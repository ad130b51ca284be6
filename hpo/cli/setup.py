"""The commands that prepare datasets and check files and machines."""

from typing import Annotated

import typer

from hpo.cli.groups import Commands
from hpo.cli.options import (
    DEFAULT_STORAGE,
    RUNS,
    Config,
    Out,
    OutputFormat,
    Pack,
    Set,
    StorageOptions,
    exit_with,
    storage_url,
)
from hpo.cli.panels import SETUP
from hpo.console import Format, show

setup_commands = Commands()
datasets = Commands(no_args_is_help=True, help="Prepare, list and show the datasets of training runs.")
checks = Commands()
setup_commands.add_typer(datasets, name="data", rich_help_panel=SETUP, epilog="Example: hpo data list")
setup_commands.add_typer(checks)

DatasetStudy = Annotated[
    str | None, typer.Option(help="Name of a study, or path of a study file, whose dataset to use.")
]


@datasets.command("prepare", epilog="Example: hpo data prepare --study beta2_sweep")
def data_prepare(study: DatasetStudy = None, overrides: Set = None, format: OutputFormat = Format.table) -> None:
    """Read, split and tokenize a dataset before any run does."""
    from hpo.commands.data import prepare_dataset
    from hpo.console import print_record

    print_record(prepare_dataset(study, overrides or []), format)


@datasets.command("list", epilog="Example: hpo data list --format json")
def data_list(format: OutputFormat = Format.table) -> None:
    """List the prepared datasets of this machine."""
    from hpo.commands.data import dataset_records
    from hpo.console import print_records

    print_records(dataset_records(), format)


@datasets.command("show", epilog="Example: hpo data show --study beta2_sweep --documents 1")
def data_show(
    study: DatasetStudy = None,
    overrides: Set = None,
    documents: Annotated[int, typer.Option(min=1, help="Number of documents to print.")] = 3,
) -> None:
    """Print training documents of a dataset as a run reads them."""
    from hpo.commands.data import training_documents

    for text in training_documents(study, overrides or [], documents):
        show(text)
        show("-" * 40)


@checks.command(rich_help_panel=SETUP, epilog="Example: hpo check beta2_sweep")
def check(
    study: Annotated[
        str, typer.Argument(help="Name of a study, path of a study file, or `claims` for the ledger of claims.")
    ],
    overrides: Set = None,
) -> None:
    """Check a study file or a ledger of claims.

    The command checks the keys, the bounds and both ends of every range. In a ledger it checks every arm (one
    configuration of a comparison) of every claim.
    """
    from hpo.commands.check import check_file

    show(check_file(study, overrides or []))


@checks.command(rich_help_panel=SETUP, epilog="Example: hpo limits mainrun-small --memory 8")
def limits(
    config: Config,
    overrides: Set = None,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Memory that the run may use. Default: 90 % of the free memory."),
    ] = None,
    pack: Pack = 1,
    format: OutputFormat = Format.table,
) -> None:
    """Find the largest batch size that fits in memory.

    The command estimates run.batch_size and then tests it. It makes at most eight tries. Each try runs two updates in
    a separate process. A larger batch makes fewer updates from the same tokens, so it changes the results.
    """
    from hpo.commands.limits import print_limits

    print_limits(config, overrides or [], memory, pack, format)


@checks.command(rich_help_panel=SETUP, epilog="Example: hpo doctor --fix")
def doctor(
    study: Annotated[str | None, typer.Option(help="Check only this study. Default: all studies.")] = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    out: Out = RUNS,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Make safe repairs: free leases, remove leftover files, add missing columns."),
    ] = False,
    format: OutputFormat = Format.table,
) -> None:
    """Check the storage, clock, disks, GPUs, data and leases.

    The result of each check is ok, warning or error, with a remedy. With --fix, the command repairs what can be
    repaired safely, and marks these checks as fixed. The exit status is 1 if an error remains, and 4 if the storage
    does not answer.
    """
    from hpo.commands.doctor import run_doctor

    exit_with(run_doctor(storage_url(storage), study, out, fix, format))

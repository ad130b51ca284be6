"""The commands that start a project: schemas for editors, new study files, and what other programs have written."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.groups import Commands
from hpo.cli.options import DEFAULT_STORAGE, StorageOptions, storage_url, valid_path
from hpo.cli.panels import SETUP
from hpo.console import say, show
from hpo.errors import Problem

start_commands = Commands()


class Schema(StrEnum):
    """The files that have a JSON schema."""

    study = "study"
    config = "config"


Written = Annotated[
    Path | None, typer.Option("--output", "-o", help="New study file. Default: standard output.", callback=valid_path)
]


@start_commands.command(rich_help_panel=SETUP, epilog="Example: hpo init --from train.py")
def init(
    output: Annotated[Path, typer.Option("--output", "-o", help="New study file.", callback=valid_path)] = Path(
        "study.yaml"
    ),
    script: Annotated[
        Path | None,
        typer.Option("--from", metavar="SCRIPT", help="Read the parameters of this script instead of asking."),
    ] = None,
) -> None:
    """Write a commented study file for a training script.

    The command asks five questions: command, parameters, metric, its direction and the number of trials. With --from,
    it reads the options of argparse or the global variables of the script, and the metric that the script prints. The
    script is not run.
    """
    from hpo.commands.init import init_study

    show(init_study(output, script, _ask))


def _ask(question: str, default: str) -> str:
    """Return the answer to a question, which is printed on standard error.

    Raises:
        Problem: standard input has ended.
    """
    print(f"{question} [{default}]: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        say("")
        raise Problem("init: must have an answer to each question on standard input; --from SCRIPT asks none")
    return line.strip() or default


@start_commands.command("import", rich_help_panel=SETUP, epilog="Example: hpo import sweep.yaml -o lr_search.yaml")
def import_(
    source: Annotated[
        str, typer.Argument(help="W&B sweep (YAML), CSV file of trials, or URL or file of an Optuna storage.")
    ],
    output: Written = None,
    study: Annotated[
        str | None, typer.Option(help="Study, by name or path of its file, that receives the trials as prior trials.")
    ] = None,
    from_study: Annotated[
        str | None, typer.Option(help="Name of the Optuna study, if its storage has several.")
    ] = None,
    renames: Annotated[
        list[str] | None,
        typer.Option("--rename", metavar="THEIRS=OURS", help="Parameter or column with another name. Can be repeated."),
    ] = None,
    storage: StorageOptions = DEFAULT_STORAGE,
) -> None:
    """Convert a W&B sweep, or add trials of Optuna or a CSV file.

    A W&B sweep becomes a study file. Everything without a counterpart is printed with its line. With --study, the
    complete trials of a CSV file or of an Optuna study become prior trials, in addition to the budget of the study: the
    sampler learns from them. Without --study, an Optuna study becomes a study file with its ranges. The storage of the
    Optuna study is only read.
    """
    from hpo.commands.import_source import import_source

    for line in import_source(source, output, study, from_study, renames or [], storage_url(storage)):
        show(line)


@start_commands.command(rich_help_panel=SETUP, epilog="Example: hpo schema config")
def schema(
    kind: Annotated[Schema, typer.Argument(help="The kind of file.")] = Schema.study,
    study: Annotated[
        str | None,
        typer.Option(help="Name of a study, or path of a study file, whose configuration class the schema describes."),
    ] = None,
) -> None:
    """Print the JSON schema of study files or configurations.

    Editors with a YAML language server complete and check files that name a schema in the line
    `# yaml-language-server: $schema=FILE`. The files that ship with hpo have this line, and `hpo init` and `hpo import`
    write it. A schema has no rules about several keys, such as low < high. `hpo check` has them all.
    """
    from hpo.commands.schema import schema_text

    show(schema_text(kind, study))

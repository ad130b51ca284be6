"""The commands that start a project: schemas for editors, new study files, and what other programs have written."""

from enum import StrEnum
from typing import Annotated

import typer

from hpo.cli.groups import Commands
from hpo.cli.panels import SETUP
from hpo.console import show

start_commands = Commands()


class Schema(StrEnum):
    """The files that have a JSON schema."""

    study = "study"
    config = "config"


@start_commands.command(rich_help_panel=SETUP, epilog="Example: hpo schema > study.schema.json")
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

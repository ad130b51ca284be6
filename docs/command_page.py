"""The page docs/cli.md: every command with its options and an example."""

from docs.drawing import GENERATED
from docs.field_tables import cell
from hpo.cli.reference import Parameter, commands

EXIT_STATUS = """| exit status | meaning |
|---|---|
| 0 | success |
| 1 | a run or a worker failed, a file cannot be written, or `hpo doctor` found an error |
| 2 | an option, a file or a request is invalid, or a newer version of hpo uses the study |
| 3 | no trial within the limits of the study is complete, so there is no result |
| 4 | the storage is unreachable, not writable or not supported |
| 130, 143 | the command was stopped by SIGINT (Ctrl-C) or SIGTERM |"""


def option_row(parameter: Parameter) -> tuple[str, ...]:
    """Return the cells of an option: spellings, type, default, meaning."""
    default = f"`{parameter.default}`" if parameter.default else ""
    names = ", ".join(f"`{name}`" for name in parameter.names)
    return names, parameter.type, "required" if parameter.required else default, parameter.help


def command_page() -> str:
    """Return docs/cli.md."""
    parts = [
        "# Command reference",
        "Results are written to standard output, messages and progress to standard error. Commands that print results "
        "take `--format table|json|yaml|csv`.",
        EXIT_STATUS,
    ]
    panel = ""
    for command in commands():
        if command.panel != panel:
            panel = command.panel
            parts.append(f"## {panel}")
        parts += [f"### `hpo {command.name}`", command.help, f"```bash\n{command.example}\n```"]
        rows = [option_row(parameter) for parameter in (*command.arguments, *command.options)]
        head = ["| option | value | default | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([*head, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)]) if rows else "")
    return GENERATED + "\n\n".join(part.strip("\n") for part in parts if part) + "\n"

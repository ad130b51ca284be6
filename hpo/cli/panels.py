"""The list of commands in `hpo --help`, in panels by purpose."""

from typing import Any

from typer.core import TyperGroup

RUN = "Run"
INSPECT = "Inspect"
CONTROL = "Control"
EVIDENCE = "Evidence"
SETUP = "Data and setup"


class PanelGroup(TyperGroup):
    """A group whose help lists the commands of each panel under the panel's title, as plain text."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel; all sections have columns of the same width."""
        shown = {name: command for name in self.list_commands(ctx) if not (command := self.commands[name]).hidden}
        width = max(map(len, shown))
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in shown.items():
            # Six columns are indentation and the spaces between both columns, as in typer.
            summary = command.get_short_help_str(formatter.width - width - 6)
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(
                (name.ljust(width), summary)
            )
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)

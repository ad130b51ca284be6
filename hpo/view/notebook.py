"""The live view of a study in a notebook: one output of the cell, drawn again while the study runs."""

import io
import sys
import time
from typing import Any

from rich.console import Console, Group

from hpo.analysis.snapshot import Snapshot
from hpo.view.live import LiveView
from hpo.worker.events import Event

WIDTH, HEIGHT = 100, 40  # characters and lines of the view
DRAW_S = 0.5  # seconds between two drawings, which are messages to the browser
# Colours of the browser's page, so that the view can be read on a dark one too.
_STYLE = "font-family: Menlo, Consolas, 'DejaVu Sans Mono', monospace; line-height: 1.25; margin: 0; overflow-x: auto"
_PAGE = f'<pre style="{_STYLE}">{{code}}</pre>'


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook. Nothing is imported for it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)  # Colab has a class of its own


class NotebookView:
    """Shows a study while it runs, as `LiveView` does in a terminal."""

    def __init__(self, snapshot: Snapshot, workers: int | None = None) -> None:
        self.view = LiveView(snapshot, workers, Console(file=io.StringIO(), force_jupyter=False))
        self.output: Any = None
        self.drawn_at = float("-inf")

    def __enter__(self) -> "NotebookView":
        from IPython.display import display

        self.output = display(self._page(), display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.output.update(self._page())

    def show(self, event: Event) -> None:
        """Show an event of a worker or of the launcher."""
        self.view.show(event)
        self._draw()

    def refresh(self, snapshot: Snapshot) -> None:
        """Use a newer snapshot of the study."""
        self.view.refresh(snapshot)
        self._draw()

    def _draw(self) -> None:
        if time.monotonic() >= self.drawn_at + DRAW_S:
            self.output.update(self._page())
            self.drawn_at = time.monotonic()

    def _page(self) -> Any:
        from IPython.display import HTML

        return HTML(self.html())

    def html(self) -> str:
        """Return the view as HTML."""
        # A console that knows the notebook would print another output of the cell.
        console = Console(file=io.StringIO(), width=WIDTH, record=True, force_terminal=True, force_jupyter=False)
        console.print(Group(*self.view.lines(WIDTH, HEIGHT)))
        return console.export_html(inline_styles=True, code_format=_PAGE)

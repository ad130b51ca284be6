"""The notebook docs/notebook.ipynb: the text and the Python blocks of docs/notebook.md as cells."""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "notebook.md"
_BLOCK = re.compile(r"```(\w+)\n(.*?)```\n", re.S)


def notebook() -> str:
    """Return the notebook. Blocks of text are outputs on the page, so the notebook leaves them out."""
    parts = _BLOCK.split(PAGE.read_text("utf-8"))  # text, language, code, text, ...
    cells = []
    for i in range(0, len(parts), 3):
        cells.append(_cell("markdown", parts[i]))
        if parts[i + 1 : i + 2] == ["python"]:
            cells.append(_cell("code", parts[i + 2]) | {"execution_count": None, "outputs": []})
    shown = [cell | {"id": f"cell-{n}"} for n, cell in enumerate(cell for cell in cells if cell["source"])]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    tree = {"cells": shown, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def _cell(kind: str, text: str) -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {}, "source": text.strip().splitlines(keepends=True)}

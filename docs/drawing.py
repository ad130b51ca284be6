"""The page and the picture of the packages, from docs/packages.yaml."""

import graphlib
import html
from typing import Any

GENERATED = "<!-- Written by docs/generate.py; edit the sources instead. -->\n\n"


def floors(table: dict[str, set[str]]) -> list[list[str]]:
    """Return packages by floor: every package stands above all that it imports."""
    level: dict[str, int] = {}
    for package in graphlib.TopologicalSorter(table).static_order():
        level[package] = 1 + max((level[below] for below in table.get(package, ())), default=-1)
    return [[p for p in table if level[p] == floor] for floor in range(max(level.values()) + 1)]


def imported(table: dict[str, Any]) -> dict[str, set[str]]:
    """Return what every package of the table may import, those that all of hpo may import included."""
    everywhere = {"hpo.errors", "hpo.config", "hpo.optuna_internals", "model.section", "model.config"}
    rows = {}
    for name, row in table.items():
        own = {".".join(target.split(".")[: 3 if "claims" in target else 2]) for target in row["imports"]}
        above = name.startswith("hpo.") and name not in everywhere
        rows[name] = (own | (everywhere if above else set())) - {name}
    return rows


def packages(table: dict[str, Any]) -> str:
    """Return docs/packages.md."""
    rows = [f"| `{name}` | {row['purpose']} | {', '.join(f'`{target}`' for target in row['imports'])} |"
            for name, row in table.items()]  # fmt: skip
    return GENERATED + "\n".join([
        "# Packages", "", "![Packages, every one above all that it imports](packages.svg)", "",
        "All of `hpo` may also import `hpo.errors`, `hpo.config`, `hpo.optuna_internals`, `model.section` and "
        "`model.config`. `tests/project/test_imports.py` checks every import against this table.", "",
        "| package | purpose | may import |", "|---|---|---|", *rows, "",
    ])  # fmt: skip


BOX, ROW, MARGIN, WIDTH = 28, 46, 16, 760  # pixels


def drawing(table: dict[str, Any]) -> str:
    """Return docs/packages.svg: a row per floor, the lowest at the bottom."""
    rows = floors(imported(table))
    height = len(rows) * ROW + 2 * MARGIN
    shapes = []
    for i, names in enumerate(reversed(rows)):
        gap = (WIDTH - 2 * MARGIN) / len(names)
        for j, name in enumerate(names):
            x, y, w = MARGIN + j * gap + 3, MARGIN + i * ROW, gap - 6
            color = "#dbe9ff" if name.startswith("hpo") else "#e2f3dd"
            title = html.escape(table[name]["purpose"])
            shapes.append(
                f'<g><title>{title}</title><rect x="{x:.0f}" y="{y}" width="{w:.0f}" height="{BOX}" rx="5" '
                f'fill="{color}" stroke="#667"/><text x="{x + w / 2:.0f}" y="{y + 18}" text-anchor="middle">'
                f"{name}</text></g>"
            )
    style = "text{font:12px sans-serif;fill:#223}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )

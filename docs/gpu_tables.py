"""The results in docs/gpu.md, from the files that `make gpu` writes to bench/results/gpu/."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu.steps import KERNELS
from bench.gpu.table import markdown, rows_of, summary

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "gpu"
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
NONE = """**No GPU was available yet.** The tests that need a GPU and the measurements were tried on a CPU only, with
`--device cpu --tiny`. This page holds no figure of a GPU."""


def with_results(page: str, folder: Path = RESULTS) -> str:
    """Return a page with the results of a folder between its marks, the latest first."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    results = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    latest_first = sorted(results, key=lambda result: result["date"], reverse=True)
    parts = [part for result in latest_first for part in _result(result)] or [NONE]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}"


def _result(result: dict[str, Any]) -> Iterator[str]:
    cards = rows_of(result, "Card")
    yield f"### {cards[0]['card'] if cards else 'Unknown card'}, {result['date']}"
    yield summary(result)
    yield markdown(result, level=4, without=(KERNELS,)).rstrip()

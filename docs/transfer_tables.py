"""The tables of docs/transfer.md, computed from the saved results of bench/transfer.py and bench/ladders.py."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.transfer import RULES, coverage, summary

RESULTS = Path(__file__).parent.parent / "bench" / "results" / "transfer"
BEGIN, END = "<!-- transfer: begin -->", "<!-- transfer: end -->"


def with_transfer_tables(page: str, folder: Path = RESULTS) -> str:
    """Return a page with the tables of the results of a folder between its marks."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    parts = [*_replay(folder / "steplaw.json"), *_ladders(folder / "ladders.json")]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}"


def _replay(file: Path) -> Iterator[str]:
    yield "### Replay on public runs"
    if not file.is_file():
        yield "No results yet; `python bench/transfer.py` writes them."
        return
    results = json.loads(file.read_text("utf-8"))
    n = len(results[0]["repeats"])
    yield (
        f"{len(results)} targets, {n} repeats each (`bench/transfer.py`). Excess loss in nats above the best run of a\n"
        "target: mean over all, the highest mean of a target, 90th percentile, and the worst single repeat."
    )
    rows = [
        [str(row["rule"]), *(f"{row[key]:.4f}" for key in ("mean", "worst target", "p90", "worst"))]
        for row in summary(results).to_dict("records")
    ]
    yield _table(["rule", "mean", "worst target", "p90", "worst"], rows)
    widths = [r["predicted"]["high"] - r["predicted"]["low"] for t in results for r in t["repeats"]]
    yield (
        f"The 90 % interval of the loss contains the measured loss in {coverage(results):.0%} of the repeats. Its\n"
        f"mean width is {np.mean(widths):.3f} nats. The mean error of the predicted loss is {_bias(results):+.4f} nats."
    )
    yield (
        "The same rules with every run of the source cells instead of 12, and the published law, which was fitted to\n"
        "these runs:"
    )
    known = [*RULES, "published law"]
    rows = []
    for rule in known:
        values = [target["whole"][rule] for target in results]
        rows.append([rule, f"{np.mean(values):.4f}", f"{max(values):.4f}"])
    yield _table(["rule", "mean", "worst target"], rows)
    yield "By target, for the fitted rule:"
    yield _by_target(results)


def _by_target(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for target in results:
        excess = [record["fitted"] for record in target["repeats"]]
        rates = [math.log(record["lr"] / target["best"]["lr"]) for record in target["repeats"]]
        batches = [math.log(record["batch"] / target["best"]["batch"]) for record in target["repeats"]]
        cells = [f"{target['N'] / 1e6:.0f} M", f"{target['D'] / 1e9:.1f} B", str(target["sources"])]
        cells += [f"{np.mean(excess):.4f}", f"{max(excess):.4f}"]
        rows.append([*cells, f"{math.exp(np.mean(rates)):.2f}", f"{math.exp(np.mean(batches)):.2f}"])
    return _table(["parameters", "tokens", "source cells", "mean", "worst", "lr / best", "batch / best"], rows)


def _bias(results: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([r["predicted"]["loss"] - r["measured"] for t in results for r in t["repeats"]]))


def _ladders(file: Path) -> Iterator[str]:
    yield "### Ladders of our own GPT"
    tree = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    targets = {name: result for name, result in tree.items() if isinstance(result, dict) and "ladders" in result}
    if not targets:
        yield "No results yet; `make ladders` writes them, in pieces that are saved."
        return
    head = ["target", "best known", "sigma", "within two sigma", "above the best", "copy above the best"]
    head += ["predicted loss too high by", "loss in interval"]
    yield _table(head, [_about_ladders(name, result) for name, result in targets.items()])
    yield "Each ladder:"
    head = ["target", "ladder", "above the best", "in sigma", "copy above the best", "loss in interval", "cost"]
    yield _table(head, [row for name, result in targets.items() for row in _ladder_rows(name, result)])


def _about_ladders(name: str, result: Mapping[str, Any]) -> list[str]:
    """Return what the ladders of a target have shown on average."""
    best, sigma, ladders = float(np.mean(result["best_losses"])), result["sigma"], result["ladders"]
    losses, copies = (np.array([np.mean(x[key]) for x in ladders]) for key in ("losses", "copied_losses"))
    excess = [f"{np.mean(x) - best:.4f} (worst {np.max(x) - best:.4f})" for x in (losses, copies)]
    bias = float(np.mean([x["loss"][0] for x in ladders] - losses))
    near, inside = (f"{n} of {len(ladders)}" for n in (sum(losses - best <= 2 * sigma), sum(map(_contains, ladders))))
    return [name, f"{best:.4f}", f"{sigma:.4f}", near, *excess, f"{bias:.3f}", inside]


def _contains(ladder: Mapping[str, Any]) -> bool:
    """Return whether the interval of a predicted loss contains the measured one."""
    _, low, high = ladder["loss"]
    return bool(low <= np.mean(ladder["losses"]) <= high)


def _ladder_rows(name: str, result: Mapping[str, Any]) -> Iterator[list[str]]:
    best, sigma = float(np.mean(result["best_losses"])), result["sigma"]
    for i, ladder in enumerate(result["ladders"], 1):
        predicted, copied = (float(np.mean(ladder[key])) - best for key in ("losses", "copied_losses"))
        cost = ladder["seconds"] / result["dense"]["seconds"]
        cells = [name, str(i), f"{predicted:+.4f}", f"{predicted / sigma:+.1f}", f"{copied:+.4f}"]
        yield [*cells, "yes" if _contains(ladder) else "no", f"{cost:.0%}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

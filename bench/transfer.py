"""Replay the rules of transfer on a public grid of runs: what would each have cost at runs that were really trained?

HPO_CURVES=FOLDER python bench/transfer.py            every target that has no saved result, then a table
HPO_CURVES=FOLDER python bench/transfer.py --fresh    every target again

FOLDER holds steplaw_dense.csv.gz: final losses over lr and batch at cells of (N, D), parameters and tokens (Step Law,
arXiv:2503.04715). --grid names another file with columns of these names. The project does not contain the data. Results
are saved in bench/results/transfer, from which docs/transfer.md takes its tables.

Each cell of at least 19 times the compute of the smallest is a target. The sources of a target are the cells of at most
a quarter of its compute. In each repeat, a rule sees 12 random runs of each source. The loss of its configuration comes
from linear interpolation between the target's runs in log lr and log batch, and from the nearest run outside their
hull. The excess is that loss minus the lowest loss of the target.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

from hpo.transfer.fields import Axis
from hpo.transfer.fit import estimate, fit_surface
from hpo.transfer.laws import Runs, layout_of

RESULTS = Path(__file__).parent / "results" / "transfer"
CONTEXT = 2_048  # tokens of a sequence
N_RUNS, REPEATS = 12, 20
TARGET_COMPUTE = 19.0  # times that of the smallest cell
SHARE = 0.25  # of a target's compute: the most that a source has
STEP_LAW = (1.797, -0.713, 0.307, 0.581, 0.571)  # lr = a N^b D^c, batch = d D^e

Cell = tuple[float, float]  # N, D
Point = tuple[float, float]  # lr, batch in tokens


class Grid:
    """The runs of a grid, by cell."""

    def __init__(self, file: Path) -> None:
        table = pd.read_csv(file)
        loss = "smooth loss" if "smooth loss" in table else "loss"
        self.cells: dict[Cell, np.ndarray] = {}  # (n, 3): log lr, log batch, loss
        for cell, rows in table[np.isfinite(table[loss])].groupby(["N", "D"]):
            columns = [np.log(rows.lr), np.log(rows.bs * CONTEXT), rows[loss]]
            self.cells[float(cell[0]), float(cell[1])] = np.column_stack(columns).astype(float)
        self.order = sorted(self.cells, key=lambda cell: cell[0] * cell[1])
        every = np.vstack(list(self.cells.values()))
        low, high = np.exp(every.min(0)), np.exp(every.max(0))
        names = ("optimizer.lr", "run.batch_size")
        self.axes = [Axis(name, "log", low[i], high[i], False) for i, name in enumerate(names)]

    def targets(self) -> list[Cell]:
        smallest = self.order[0][0] * self.order[0][1]
        return [cell for cell in self.order if cell[0] * cell[1] >= TARGET_COMPUTE * smallest]

    def sources(self, target: Cell) -> list[Cell]:
        """Return the cells of at most a quarter of a target's compute, the smallest first."""
        most = SHARE * target[0] * target[1] * 1.001
        return [cell for cell in self.order if cell[0] * cell[1] <= most]

    def loss(self, cell: Cell, point: Point) -> float:
        runs, at = self.cells[cell], np.log(np.array([point]))
        inside = LinearNDInterpolator(runs[:, :2], runs[:, 2])(at)[0]
        return float(inside if np.isfinite(inside) else NearestNDInterpolator(runs[:, :2], runs[:, 2])(at)[0])

    def excess(self, cell: Cell, point: Point) -> float:
        return self.loss(cell, point) - float(self.cells[cell][:, 2].min())


Seen = Mapping[Cell, np.ndarray]  # the runs of each source that a rule sees


def best_of(runs: np.ndarray) -> Point:
    lr, batch, _ = runs[np.argmin(runs[:, 2])]
    return float(np.exp(lr)), float(np.exp(batch))


def nearest(seen: Seen, target: Cell) -> Cell:
    """Return the source with the smallest distance in log size and log tokens."""
    return min(seen, key=lambda cell: sum(abs(np.log(a / b)) for a, b in zip(cell, target, strict=True)))


def nanochat(point: Point, source: Cell, target: Cell) -> Point:
    """Return batch by (D / D0)^0.383, rounded to a power of two, and lr by the square root of its ratio."""
    lr, batch = point
    longer = 2 ** round(np.log2(batch * (target[1] / source[1]) ** 0.383))
    return lr * (longer / batch) ** 0.5, float(longer)


def step_law(target: Cell) -> Point:
    a, b, c, d, e = STEP_LAW
    return a * target[0] ** b * target[1] ** c, d * target[1] ** e


# horizon keeps lr and batch, and a grid of lr and batch shows no more of it than of copy.
RULES: dict[str, Callable[[Seen, Cell], Point]] = {
    "copy, smallest cell": lambda seen, target: best_of(next(iter(seen.values()))),
    "copy, nearest cell": lambda seen, target: best_of(seen[nearest(seen, target)]),
    "nanochat, smallest cell": lambda seen, t: nanochat(best_of(next(iter(seen.values()))), next(iter(seen)), t),
    "nanochat, nearest cell": lambda seen, t: nanochat(best_of(seen[nearest(seen, t)]), nearest(seen, t), t),
}


def fitted(grid: Grid, seen: Seen, target: Cell) -> tuple[Point, dict[str, float]]:
    """Return the prediction of `hpo transfer`, and its loss with a 90 % interval."""
    runs = np.vstack(list(seen.values()))
    scales = np.vstack([np.repeat([[np.log(d), np.log(n)]], len(r), 0) for (n, d), r in seen.items()])
    cell = np.concatenate([np.full(len(r), k) for k, r in enumerate(seen.values())])
    data = Runs(runs[:, :2], scales, runs[:, 2], cell)
    at = estimate(fit_surface(layout_of(grid.axes, data), data), np.log(np.array([target[1], target[0]])))
    lr, batch = np.exp(at.x)
    return (float(lr), float(batch)), {"loss": at.loss, "low": at.loss_low, "high": at.loss_high}


def replay(grid: Grid, target: Cell) -> dict[str, Any]:
    """Return the results of all rules at a target, one record for each repeat."""
    sources, records = grid.sources(target), []
    for repeat in range(REPEATS):
        rng = np.random.default_rng([repeat, grid.order.index(target)])
        seen = {c: rng.permutation(grid.cells[c])[:N_RUNS] for c in sources}
        record: dict[str, Any] = {rule: grid.excess(target, apply(seen, target)) for rule, apply in RULES.items()}
        point, predicted = fitted(grid, seen, target)
        measured = grid.loss(target, point)
        record |= {"fitted": grid.excess(target, point), "predicted": predicted, "measured": measured}
        record |= {"lr": point[0], "batch": point[1], "inside": predicted["low"] <= measured <= predicted["high"]}
        records.append(record)
    whole = {c: grid.cells[c] for c in sources}
    known = {rule: grid.excess(target, apply(whole, target)) for rule, apply in RULES.items()}
    known["published law"] = grid.excess(target, step_law(target))
    lowest = grid.cells[target][np.argmin(grid.cells[target][:, 2])]
    best = {"lr": float(np.exp(lowest[0])), "batch": float(np.exp(lowest[1])), "loss": float(lowest[2])}
    return {"N": target[0], "D": target[1], "sources": len(sources), "best": best, "whole": known, "repeats": records}


def summary(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row for each rule: mean excess, worst mean of a target, worst run, and 90th percentile."""
    rows = []
    for rule in [*RULES, "fitted"]:
        excess = np.array([[record[rule] for record in result["repeats"]] for result in results])
        row = {"rule": rule, "mean": excess.mean(), "worst target": excess.mean(1).max()}
        rows.append(row | {"p90": np.quantile(excess, 0.9), "worst": excess.max()})
    return pd.DataFrame(rows)


def coverage(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of predictions whose loss lies in the interval."""
    return float(np.mean([record["inside"] for result in results for record in result["repeats"]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, default=Path(os.environ.get("HPO_CURVES", ".")) / "steplaw_dense.csv.gz")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "steplaw.json")
    options = parser.parse_args()
    grid, file = Grid(options.grid), options.out
    results = [] if options.fresh or not file.is_file() else json.loads(file.read_text("utf-8"))
    file.parent.mkdir(parents=True, exist_ok=True)
    for target in grid.targets():
        if not any((result["N"], result["D"]) == target for result in results):
            results.append(replay(grid, target))
            file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(summary(results).round(4).to_string(index=False))
    print(f"loss in the 90 % interval: {coverage(results):.0%}")


if __name__ == "__main__":
    main()

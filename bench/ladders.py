"""Show on our own GPT what a ladder predicts: ten ladders against one dense search at each of two targets.

python bench/ladders.py                 train what is missing, for as long as it takes, then write the results
python bench/ladders.py --minutes 60    the same, for at most an hour; --workers 2: in two processes
python bench/ladders.py --results       write the results of what is finished

Each finished run is one line of bench/results/transfer/ladder_runs.jsonl, so the script can be ended at any time and
resumes.

The targets are 16 times the tokens, and 4 times the width, of the smallest cell. At each target, 48 configurations are
trained, 24 of a Sobol design and 24 around the minimum of a surface fitted to those. The minimum of the surface of all
48 is trained on five fresh seeds: the best that is known. A ladder draws 12 runs of the smallest cell, centers the
other cells on the best of them, and predicts for both targets. Prediction and copied configuration are trained on the
same five seeds as the best.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from bench.ladder_runs import KeptRuns
from hpo.search.ranges import Range, Space
from hpo.transfer.cells import Cell
from hpo.transfer.fields import Axis, axes_of
from hpo.transfer.fit import Estimate, estimate, fit_surface
from hpo.transfer.laws import Runs, layout_of
from hpo.transfer.plan import design
from hpo.transfer.scale import scale_of
from model.config import TrainConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "transfer" / "ladders.json"
RUNS = RESULTS.with_name("ladder_runs.jsonl")

TOKENS = 60_000
BASE = {
    "data": {"name": "python-docs"},
    "tokenizer": {"name": "bpe", "vocab_size": 512},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context": 32, "norm": "rmsnorm", "position": "rope"},
    "optimizer": {"name": "adamw", "lr": 4e-3},
    "schedule": {"name": "cosine", "warmup": 0.1},
    "run": {"tokens": TOKENS, "rungs": 1, "batch_size": 8, "align": 1},
}
SPACE: Space = {
    "optimizer.lr": Range(low=3e-4, high=1e-1, log=True),
    "run.batch_size": Range(low=2, high=64, log=True),
    "optimizer.weight_decay": Range(low=1e-3, high=1.0, log=True),
}
HEAD = 16  # width of a head


def scale(width: int, times: int) -> dict[str, int]:
    """Return the fields of a cell."""
    return {"run.tokens": times * TOKENS, "model.n_embd": width, "model.n_head": width // HEAD}


SMALLEST = Cell(scale(32, 1), 12)
CELLS = (Cell(scale(64, 1), 12), Cell(scale(32, 4), 10), Cell(scale(64, 4), 8))
TARGETS = {"16 times the tokens": scale(64, 16), "4 times the width": scale(128, 4)}
LADDERS, DENSE, FRESH = 10, 48, (5_001, 5_002, 5_003, 5_004, 5_005)


def seeded(runs: Sequence[Mapping[str, Any]], first: int) -> list[dict[str, Any]]:
    return [{**values, "run.seed": first + i} for i, values in enumerate(runs)]


def sobol(base: TrainConfig, axes: Sequence[Axis], cell: Cell, seed: int) -> list[dict[str, Any]]:
    """Return a Sobol design over the whole ranges."""
    from scipy.stats import qmc

    points = qmc.Sobol(len(axes), rng=np.random.default_rng(seed)).random_base2(6)[: cell.runs]
    runs = []
    for row in points:
        ends = [(a.coordinate(a.low), a.coordinate(a.high)) for a in axes]
        values = {a.path: a.value(low + t * (high - low)) for a, t, (low, high) in zip(axes, row, ends, strict=True)}
        runs.append({**values, **cell.values})
    return runs


def data_of(kept: KeptRuns, axes: Sequence[Axis], runs: Sequence[Mapping[str, Any]]) -> Runs:
    """Return finished runs as the data of a fit; runs of equal length and size form a cell."""
    scales = [scale_of(kept.config(values)) for values in runs]
    cells = list(dict.fromkeys(scales))
    x = [[axis.coordinate(float(values[axis.path])) for axis in axes] for values in runs]
    losses = [kept.loss(values) for values in runs]
    return Runs(np.array(x), np.array(scales), np.array(losses), np.array([cells.index(s) for s in scales]))


def fitted(
    kept: KeptRuns, axes: Sequence[Axis], runs: Sequence[Mapping[str, Any]], cell: Mapping[str, Any]
) -> Estimate:
    data = data_of(kept, axes, runs)
    return estimate(fit_surface(layout_of(axes, data), data), np.array(scale_of(kept.config(cell))))


def values_at(axes: Sequence[Axis], x: Sequence[float], cell: Mapping[str, Any]) -> dict[str, Any]:
    return {axis.path: axis.value(float(c)) for axis, c in zip(axes, x, strict=True)} | dict(cell)


def ladder_runs(
    kept: KeptRuns, axes: Sequence[Axis], ladder: int
) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """Return all runs of a ladder and the configuration that a user would copy; None if the time is over."""
    search = seeded(sobol(kept.base, axes, SMALLEST, 100 + ladder), 10_000 * (ladder + 1))
    if not kept.train(search):
        return None
    best = min(search, key=kept.loss)
    copied = {axis.path: best[axis.path] for axis in axes}
    center, runs = kept.config(copied), []
    for k, cell in enumerate(CELLS):
        runs += design(center, axes, SPACE, cell, 1_000 * ladder + k)
    runs = seeded(runs, 10_000 * (ladder + 1) + 100)
    return (search + runs, copied) if kept.train(runs) else None


def dense_runs(kept: KeptRuns, axes: Sequence[Axis], cell: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the dense search at a target; None if the time is over."""
    half = Cell(cell, DENSE // 2)
    first = seeded(sobol(kept.base, axes, half, 1), 1)
    if not kept.train(first):
        return None
    x = fitted(kept, axes, first, cell).x
    inside = [min(max(c, a.coordinate(a.low)), a.coordinate(a.high)) for a, c in zip(axes, x, strict=True)]
    center = kept.config(values_at(axes, inside, {}))
    second = seeded(design(center, axes, SPACE, half, 2), 100)
    return first + second if kept.train(second) else None


def fresh(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**values, "run.seed": seed} for seed in FRESH]


def steps(kept: KeptRuns, axes: Sequence[Axis]) -> Iterator[bool]:
    """Train everything in an order in which early results are useful; yield False where the time is over."""
    best = {}
    for ladder in range(LADDERS):
        yield ladder_runs(kept, axes, ladder) is not None
    for name, cell in TARGETS.items():
        dense = dense_runs(kept, axes, cell)
        yield dense is not None
        best[name] = values_at(axes, fitted(kept, axes, dense or [], cell).x, cell)
        confirming = fresh(best[name])
        for ladder in range(LADDERS):
            runs, copied = ladder_runs(kept, axes, ladder) or ([], {})
            predicted = values_at(axes, fitted(kept, axes, runs, cell).x, cell)
            confirming += [*fresh(predicted), *fresh({**copied, **cell})]
        yield kept.train(confirming)  # at once: the workers need not wait for each other between ladders


def results(kept: KeptRuns, axes: Sequence[Axis]) -> dict[str, Any]:
    """Return what is finished, by target."""
    tree: dict[str, Any] = {"tokens": TOKENS, "cells": [dict(c.values) | {"runs": c.runs} for c in (SMALLEST, *CELLS)]}
    kept.deadline = 0.0
    for name, cell in TARGETS.items():
        dense = dense_runs(kept, axes, cell)
        if dense is None:
            continue
        best = values_at(axes, fitted(kept, axes, dense, cell).x, cell)
        if not kept.train(fresh(best)):
            continue
        scores = [kept.loss(v) for v in fresh(best)]
        tree[name] = {"best": best, "best_losses": scores, "sigma": float(np.std(scores, ddof=1)), "ladders": []}
        tree[name]["dense"] = {"seconds": kept.seconds(dense), "lowest": min(map(kept.loss, dense))}
        for ladder in range(LADDERS):
            found = ladder_runs(kept, axes, ladder)
            if found is not None and (record := _ladder_record(kept, axes, found, cell)):
                tree[name]["ladders"].append(record)
    return tree


def _ladder_record(
    kept: KeptRuns, axes: Sequence[Axis], found: tuple[list[dict[str, Any]], dict[str, Any]], cell: Mapping[str, Any]
) -> dict[str, Any] | None:
    runs, copied = found
    at = fitted(kept, axes, runs, cell)
    predicted, copy = values_at(axes, at.x, cell), {**copied, **cell}
    if not kept.train([*fresh(predicted), *fresh(copy)]):
        return None
    return {
        "predicted": predicted,
        "losses": [kept.loss(v) for v in fresh(predicted)],
        "copied": copy,
        "copied_losses": [kept.loss(v) for v in fresh(copy)],
        "loss": [at.loss, at.loss_low, at.loss_high],
        "seconds": kept.seconds(runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--results", action="store_true")
    options = parser.parse_args()
    base, deadline = TrainConfig.model_validate(BASE), time.monotonic() + 60 * options.minutes
    RUNS.parent.mkdir(parents=True, exist_ok=True)
    kept = KeptRuns(RUNS, base, deadline, options.workers)
    axes = axes_of(kept.base, SPACE, {})
    if not options.results:
        for done in steps(kept, axes):
            if not done:
                break
    tree = results(kept, axes)
    if tree.keys() & TARGETS.keys():
        RESULTS.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

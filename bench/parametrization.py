"""Measure how the best learning rate moves with the width under the standard parametrization and under mup.

OMP_NUM_THREADS=1 nice python -m bench.parametrization           # runs what is missing, then prints the table
OMP_NUM_THREADS=1 nice python -m bench.parametrization --table   # prints the table of the results so far

Each combination of parametrization, width and learning rate trains SEEDS runs. Rates lie on a grid of sqrt(2). The
search of a width begins at the best rate of the width below and adds rates until the best one has two worse neighbours
on each side. Every combination is saved when it ends, so an interrupted measurement resumes.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

from model.config import TrainConfig
from model.section import updated

RESULTS = Path(__file__).with_name("results") / "parametrization.json"
WIDTHS, HEAD, BASE = (64, 128, 256), 16, 64
KINDS = ("standard", "mup")
SEEDS = (0, 1, 2)
FIRST = -15  # the first rate of the narrowest network is sqrt(2)^-15 = 0.0055
NEIGHBOURS = 2  # rates on each side of the best one
SETTINGS = {
    "data.name": "python-docs",
    "data.val_fraction": 0.01,
    "tokenizer.name": "chars",
    "model.n_layer": 2,
    "run.device": "cpu",
    "run.precision": "fp32",
    "model.context": 32,
    "run.tokens": 128 * 256,
    "run.rungs": 1,
}

Results = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the table of the results so far")
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not parser.parse_args().table:
        measure(results)
    print_table(results)


def measure(results: Results) -> None:
    """Train every combination that is missing, the narrowest networks first."""
    for width in WIDTHS:
        for kind in KINDS:
            narrower = losses(results, kind, width // 2)
            first = best(narrower) if narrower else FIRST
            while (exponent := next_exponent(losses(results, kind, width), first)) is not None:
                start = time.process_time()
                values = train(kind, width, exponent)
                seconds = round(time.process_time() - start, 1)
                results[f"{kind}/{width}/{exponent}"] = {"val_loss": values, "cpu_seconds": seconds}
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                print(f"{kind} width {width} lr {rate(exponent):.5f}: {statistics.mean(values):.4f} in {seconds} s")


def rate(exponent: int) -> float:
    return math.sqrt(2) ** exponent


def train(kind: str, width: int, exponent: int) -> list[float]:
    """Return the last validation losses of one combination, one per seed; infinity for a run that diverged."""
    from model.train.trainer import Trainer

    values = SETTINGS | {"model.n_embd": width, "model.n_head": width // HEAD, "optimizer.lr": rate(exponent)}
    if kind != "standard":
        values |= {"model.parametrization": kind, "model.base_width": BASE}
    config = updated(TrainConfig(), values)
    last = [math.inf] * len(SEEDS)
    for _, metrics in Trainer([updated(config, {"run.seed": seed}) for seed in SEEDS]):
        for lane, m in metrics.items():
            last[lane] = m.val_loss if math.isfinite(m.val_loss) else math.inf
    return last


def losses(results: Results, kind: str, width: int) -> dict[int, list[float]]:
    """Return the losses of one width by the exponent of the learning rate."""
    prefix = f"{kind}/{width}/"
    return {int(key.removeprefix(prefix)): own["val_loss"] for key, own in results.items() if key.startswith(prefix)}


def best(found: dict[int, list[float]]) -> int:
    return min(found, key=lambda exponent: statistics.mean(found[exponent]))


def next_exponent(found: dict[int, list[float]], first: int = FIRST) -> int | None:
    """Return a rate near the best one that is missing, None if there is none. first: the first rate of all."""
    if not found:
        return first
    center = best(found)
    around = (center + sign * step for step in range(1, NEIGHBOURS + 1) for sign in (-1, 1))
    return next((exponent for exponent in around if exponent not in found), None)


def optimum(found: dict[int, list[float]], seed: int | None = None) -> float:
    """Return the minimum of a parabola through the best rate and its neighbours, as an exponent.

    seed: place of one seed; None for the mean over seeds.
    """
    mean = {k: statistics.mean(v) if seed is None else v[seed] for k, v in found.items()}
    inner = [k for k in mean if k - 1 in mean and k + 1 in mean]
    center = min(inner, key=lambda k: mean[k])
    low, middle, high = (mean[center + i] for i in (-1, 0, 1))
    return center + (low - high) / (2 * (low - 2 * middle + high))


def print_table(results: Results) -> None:
    """Print the best rate of each width, and how far it moves, in steps of sqrt(2)."""
    print("| parametrization | width | best lr | loss (sd over seeds) | optimum of a parabola, steps (by seed) |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        steps = []
        for width in WIDTHS:
            found = losses(results, kind, width)
            if not found or next_exponent(found) is not None:
                continue
            center = best(found)
            steps.append(center)
            own = ", ".join(f"{optimum(found, seed):.1f}" for seed in range(len(SEEDS)))
            loss = f"{statistics.mean(found[center]):.4f} ({statistics.stdev(found[center]):.4f})"
            print(f"| {kind} | {width} | {rate(center):.4f} | {loss} | {optimum(found):.1f} ({own}) |")
        if steps:
            print(f"\n{kind}: the best rate moves by {max(steps) - min(steps)} steps of sqrt(2)\n")


if __name__ == "__main__":
    main()

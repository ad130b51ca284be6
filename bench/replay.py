"""Simulate searches on recorded curves, and keep the results as JSON files that docs/search.md is made from.

HPO_CURVES=FOLDER python bench/replay.py [quick|full] [--processes 2] [--hours 8] [--only TEXT] [--list]

A search of a plan is a cell: a world, a sampler, a pruner and a budget. Each cell is a file in bench/results/replay,
which is written again after each piece of about a minute. A second call continues where the first one stopped, and
repeats only cells whose rules have changed. Without HPO_CURVES, nothing is simulated.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.replay_plan import PLANS, Cell
from hpo.replay.curves import Curves
from hpo.replay.description import FOLDER
from hpo.replay.measures import rank_correlations, record
from hpo.replay.simulation import Search, simulate
from hpo.replay.surrogate import held_out_error
from hpo.replay.tables import read_curves
from hpo.replay.worlds import WORLDS, World

BENCH = Path(__file__).parent
RESULTS = BENCH / "results" / "replay"
PIECE_S = 60.0  # seconds of a piece, after which its results are written


def main() -> int:
    """Run the pieces of a plan that are missing; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", nargs="?", default="quick", choices=PLANS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--hours", type=float, default=8.0, help="stop after this time")
    parser.add_argument("--only", default="", help="run only cells whose path contains this text")
    parser.add_argument("--list", action="store_true", help="list the cells and the number of searches they lack")
    options = parser.parse_args()
    folder: Path = options.results / options.plan
    cells = [cell for cell in PLANS[options.plan]() if options.only in str(cell.path)]
    if options.list:
        for cell in cells:
            print(f"{cell.path}: {len(missing_seeds(folder, cell))} of {cell.seeds} searches missing")
        return 0
    if not os.environ.get(FOLDER):
        print(f"note: {FOLDER} is not set, so no recorded curves are replayed; the kept results remain")
        return 0
    return run(folder, cells, options.processes, time.monotonic() + 3600 * options.hours)


def run(folder: Path, cells: list[Cell], processes: int, deadline: float) -> int:
    """Run cells in several processes until a time; return the exit status."""
    names = list(dict.fromkeys(cell.world for cell in cells))
    for name in names:
        write_world(folder.parent, name)
    todo = [(folder, cell, deadline) for cell in cells if missing_seeds(folder, cell)]
    began, done = time.monotonic(), 0
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # of the processes below
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        for line in pool.imap_unordered(run_cell, todo):
            done += 1
            print(f"{time.monotonic() - began:6.0f} s  {done} of {len(todo)}  {line}", flush=True)
    for name in names:
        if time.monotonic() < deadline:
            write_world(folder.parent, name, with_error=True)
    return 0


def run_cell(task: tuple[Path, Cell, float]) -> str:
    """Run the missing searches of a cell and write them after each piece; return a line about it."""
    folder, cell, deadline = task
    seeds, kept = missing_seeds(folder, cell), read_records(folder, cell)
    piece, spent = time.monotonic(), time.process_time()
    for seed in seeds:
        if time.monotonic() > deadline:
            return f"{cell.path}: stopped at the time limit"
        world = world_of(cell.world, cell.kind)
        kept.append(record(world, simulate(world, search_of(cell, world), seed), seed))
        if time.monotonic() - piece > PIECE_S or seed == seeds[-1]:
            write_json(folder / cell.path, cell.settings() | {"records": kept})
            piece = time.monotonic()
    return f"{cell.path}: {len(seeds)} searches, {time.process_time() - spent:.0f} CPU seconds"


def search_of(cell: Cell, world: World) -> Search:
    """Return the rules of a cell. Its budget is in full runs, or in trials."""
    rungs = None if cell.runs is None else cell.runs * world.curves.rungs
    return Search(cell.build_sampler(), cell.build_pruner(), cell.workers, cell.trials, rungs)


def missing_seeds(folder: Path, cell: Cell) -> list[int]:
    """Return the seeds of a cell without a kept result."""
    known = {one["seed"] for one in read_records(folder, cell)}
    return [seed for seed in range(cell.seeds) if seed not in known]


def read_records(folder: Path, cell: Cell) -> list[dict[str, Any]]:
    """Return the kept results of a cell; none if its rules have changed since."""
    file = folder / cell.path
    if not file.is_file():
        return []
    tree = json.loads(file.read_text("utf-8"))
    records: list[dict[str, Any]] = tree.pop("records")
    return records if tree == json.loads(json.dumps(cell.settings())) else []


def write_json(file: Path, tree: Any) -> None:
    """Write a file in one step, one record per line, so that an interruption leaves the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    records = tree.pop("records", None)
    text = json.dumps(tree, indent=1)
    if records is not None:
        rows = ",\n".join(json.dumps(one) for one in sorted(records, key=lambda one: one["seed"]))
        text = f'{text[:-2]},\n "records": [\n{rows}\n]}}'
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text + "\n", "utf-8")
    partial.replace(file)


@cache
def curves_of(name: str) -> Curves:
    """Return the curves of a world."""
    return read_curves(BENCH / "worlds" / f"{name}.yaml")


@cache
def world_of(name: str, kind: str) -> World:
    """Return a world. Each process fits a surrogate at most once."""
    world: World = WORLDS[kind](curves_of(name))
    return world


def write_world(folder: Path, name: str, with_error: bool = False) -> None:
    """Write what is known of the curves of a world, unless the file has it: their number and rank correlations.

    with_error: add the error of the surrogate, which takes a minute.
    """
    file = folder / "worlds" / f"{name}.json"
    tree: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    curves = curves_of(name)
    if tree and (not with_error or "held_out" in tree or not curves.space):
        return
    tree |= {
        "configurations": len(curves.params),
        "runs": len(curves.values),
        "rungs": curves.rungs,
        "omitted": dict(curves.omitted),
        "rank": [list(map(_rounded, estimate)) for estimate in rank_correlations(curves)],
    }
    if curves.space and with_error:
        error = held_out_error(curves)
        tree["held_out"] = {key: _rounded(getattr(error, key)) for key in ("n", "rmse", "spread", "rank")}
    write_json(file, tree)


def _rounded(value: float) -> float:
    return round(value, 5)


if __name__ == "__main__":
    sys.exit(main())

"""The saved results of bench/replay.py: searches with each set of rules, in each world."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.replay_plan import ALL_PRUNERS, ANSWERING, RUNS, SAMPLERS, SURROGATE, WORLD_NAMES
from hpo.replay.measures import Record

RESULTS = Path(__file__).parent.parent / "bench" / "results" / "replay"


class Result(NamedTuple):
    """The saved results of a cell, and of its reference: random search without pruning in the same world."""

    settings: dict[str, Any]
    records: Sequence[Record]
    reference: Sequence[Record]
    budget: int


Results = dict[tuple[str, str], dict[tuple[str, str, int], Result]]


def read_results(folder: Path, plan: str) -> Results:
    """Return the results of a plan by world and kind of world, then by sampler, pruner and budget."""
    return {
        (world, kind): _results(folder, plan, world, kind) for world in WORLD_NAMES for kind in ("shuffled", *ANSWERING)
    }


def _results(folder: Path, plan: str, world: str, kind: str) -> dict[tuple[str, str, int], Result]:
    """Return the results of a world by sampler, pruner and budget."""
    kept = {}
    for file in sorted((folder / plan / f"{world}--{kind}").glob("*.json")):
        tree = json.loads(file.read_text("utf-8"))
        sampler, pruner, budget = file.stem.split("--")
        if is_current(tree, sampler, pruner):
            kept[sampler, pruner, int(budget.partition("-")[0])] = tree
    shape = folder / "worlds" / f"{world}.json"
    rungs = int(json.loads(shape.read_text("utf-8"))["rungs"]) if shape.is_file() else 1
    results = {}
    for (sampler, pruner, budget), tree in kept.items():
        reference = kept.get(("pool" if kind == "shuffled" else "random", "none", budget))
        if reference is not None:
            results[sampler, pruner, budget] = Result(tree, tree["records"], reference["records"], budget * rungs)
    return results


def is_current(tree: dict[str, Any], sampler: str, pruner: str) -> bool:
    """Return whether saved results are those of the rules and worlds that this version measures under these names."""
    rules = (tree["sampler"], tree["pruner"]) == (SAMPLERS.get(sampler), ALL_PRUNERS.get(pruner))
    return rules and tree.get("surrogate") == (SURROGATE if tree["kind"] == "surrogate" else None)


def results_by_world(results: Results, sampler: str, pruner: str) -> dict[tuple[str, str], Result]:
    """Return the results of rules in all worlds that answer any configuration."""
    rules = (sampler, pruner, RUNS)
    places = [(world, kind) for world in WORLD_NAMES for kind in ANSWERING]
    return {place: results[place][rules] for place in places if rules in results[place]}

"""Compare the default rules of this version with those of version 0.1 on real searches of equal tokens.

python bench/rules.py [--seeds 5] [--runs 4] [--workers 4] [--out runs/rules] [--json rules.json]

Each search trains beta2_sweep on as many tokens as 18 full runs, with one of the two rules and its own seed. Then the
winner of every search runs on fresh seeds, the same for all of them. The script prints the paired difference between
the rules, one pair per seed of the search. A search takes about 5 minutes of CPU time. Every result is stored in a JSON
file of `--out` when it is known, so the script continues where it was interrupted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

FULL_RUNS = 18  # of which the tokens are the budget of a search
FIRST_SEED = 1001  # of the winners' runs; the searches train with seed 0
STUDY = Path(__file__).parents[1] / "studies" / "beta2_sweep.yaml"
RULES: dict[str, dict[str, Any]] = {
    "old": {"sampler": {"name": "tpe", "multivariate": True}, "pruner": {"peers": "finished"}},
    "new": {},
}


def main() -> None:
    """Run what has no result yet, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="searches with each of the rules")
    parser.add_argument("--runs", type=int, default=4, help="runs of each winner on fresh seeds")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/rules"), help="folder of the results")
    parser.add_argument("--json", type=Path, help="file to which the comparison is written, too")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    searches = [search(out, rule, seed, arguments.workers) for seed in range(arguments.seeds) for rule in RULES]
    values = fresh_runs(out, searches, arguments.runs, arguments.workers)
    comparison = compare(searches, values, arguments.runs)
    print("\n".join(describe(comparison)))
    if arguments.json:
        arguments.json.write_text(json.dumps(comparison, indent=1) + "\n", "utf-8")


def search(out: Path, rule: str, seed: int, workers: int) -> dict[str, Any]:
    """Return the result of one search, which runs now unless its file exists."""
    result = out / f"{rule}-{seed}.json"
    if not result.exists():
        study = shipped_study()
        changes = RULES[rule]
        study |= {"seed": seed, "budget": {"tokens": FULL_RUNS * study["base"]["run"]["tokens"]}}
        study |= {key: study.get(key, {}) | values for key, values in changes.items()}
        found = run(out, f"{rule}-{seed}", study, workers, search_record)
        write(result, {"rule": rule, "seed": seed, **found})
    return dict(json.loads(result.read_text("utf-8")))


def search_record(snapshot: Any) -> dict[str, Any]:
    """Return what a finished search found, and how its best value improved with the tokens of ended trials."""
    from hpo.storage.attributes import FIXED_VALUES, METRICS
    from hpo.storage.trials import State

    best = snapshot.best()
    tokens, lowest, history = 0, float("inf"), []
    ended = [t for t in snapshot.trials if t.ended]
    for trial in sorted(ended, key=lambda t: t.ended):
        tokens += (trial.user_attrs.get(METRICS) or {}).get("tokens", 0)
        if trial.state == State.COMPLETE and trial.values[0] < lowest:
            lowest = trial.values[0]
            history.append([tokens, lowest])
    return {
        "trials": len(ended),
        "complete": len(snapshot.in_state(State.COMPLETE)),
        "tokens": tokens,
        "baseline": snapshot.baseline_value,
        "best": best.values[0],
        "params": best.user_attrs.get(FIXED_VALUES, best.params),
        "history": history,
    }


def fresh_runs(out: Path, searches: list[dict[str, Any]], runs: int, workers: int) -> dict[str, list[float]]:
    """Return the losses of each winner on fresh seeds, by its configuration. Runs without a result are started now."""
    winners = {configuration(found): found["params"] for found in searches}
    result = out / "winners.json"
    values: dict[str, list[float]] = json.loads(result.read_text("utf-8")) if result.exists() else {}
    if missing := [key for key in winners if len(values.get(key, [])) < runs]:
        study = shipped_study()
        for key in ("space", "baseline", "sampler", "pruner", "budget"):
            study.pop(key, None)
        arms = {f"winner {i}": winners[key] for i, key in enumerate(missing)}
        study |= {"arms": arms, "seeds": list(range(FIRST_SEED, FIRST_SEED + runs))}
        losses = run(out, f"winners-{len(values)}", study, workers, values_by_seed)
        values |= {key: losses[f"winner {i}"] for i, key in enumerate(missing)}
        write(result, values)
    return values


def configuration(found: dict[str, Any]) -> str:
    """Return a key that is equal for searches with the same winner."""
    return json.dumps(found["params"], sort_keys=True)


def values_by_seed(snapshot: Any) -> dict[str, list[float]]:
    """Return the losses of each arm in the order of their seeds."""
    from hpo.storage.attributes import ARM, SEED

    values: dict[str, list[float]] = {}
    for trial in sorted(snapshot.trials, key=lambda t: int(t.user_attrs[SEED])):
        values.setdefault(trial.user_attrs[ARM], []).append(trial.values[0])
    return values


def shipped_study() -> dict[str, Any]:
    from hpo.config.yaml import parse_yaml

    return dict(parse_yaml(STUDY.read_text("utf-8")))


def run(out: Path, name: str, study: dict[str, Any], workers: int, read: Callable[[Any], T]) -> T:
    """Launch a study in a folder of its own, or continue it; return what `read` returns for its snapshot."""
    from hpo.analysis.snapshot import read_snapshot
    from hpo.config.yaml import dump_yaml
    from hpo.storage.engine import open_readonly

    folder = out / name
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(dump_yaml(study), "utf-8")
    command = [sys.executable, "-m", "hpo", "launch", "--study", f"{name}.yaml", "--workers", str(workers), "--quiet"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with open_readonly(f"sqlite:///{folder}/runs/hpo.db") as store:
        return read(read_snapshot(store, name))


def compare(searches: list[dict[str, Any]], values: dict[str, list[float]], runs: int) -> dict[str, Any]:
    """Return the searches with the means of their winners on fresh seeds, and the difference of the rules."""
    from hpo.analysis.statistics import interval

    for found in searches:
        found["fresh"] = values[configuration(found)][:runs]
    means = {(found["rule"], found["seed"]): statistics.fmean(found["fresh"]) for found in searches}
    seeds = sorted({found["seed"] for found in searches})
    differences = [means["new", seed] - means["old", seed] for seed in seeds]
    mean, low, high = interval(differences)
    return {
        "runs": runs,
        "searches": searches,
        "differences": differences,
        "mean": mean,
        **({"low": low, "high": high} if len(seeds) > 1 else {}),
    }


def describe(comparison: dict[str, Any]) -> Iterator[str]:
    """Yield one line per search, and the difference between the rules."""
    yield "rules  seed  trials  complete  million tokens  best    fresh seeds"
    for found in comparison["searches"]:
        yield (
            f"{found['rule']:5}  {found['seed']:4}  {found['trials']:6}  {found['complete']:8}  "
            f"{found['tokens'] / 1e6:14.2f}  {found['best']:.4f}  {statistics.fmean(found['fresh']):.4f}"
        )
    interval = f", 95 % interval {comparison['low']:.4f} to {comparison['high']:.4f}" if "low" in comparison else ""
    n = len(comparison["differences"])
    yield f"new minus old on fresh seeds: {comparison['mean']:.4f} nats per token{interval}, {n} pairs"


def write(path: Path, value: Any) -> None:
    """Write a JSON file as a whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
    main()

"""Replay pruning with raw losses and with cool-down probes, and print the tables of docs/transfer.md.

[HPO_CURVES=FOLDER] python bench/probe_replay.py [--orders 100] [--results FOLDER]

The runs are those that bench/probe_runs.py keeps in bench/results/probes, and with HPO_CURVES the Llama runs of
lr_schedule_curves.csv.gz. A search is an order of the runs, with one worker and the pruner of hpo itself.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.direction import Direction
from hpo.search.probes import NO_PROBES, ProbePlan, decide_now, rank_correlation
from hpo.search.pruners import Median, Percentile, build_pruner, rule_for
from hpo.search.pruning import CachedPruner
from hpo.storage.attributes import PROBES

RESULTS = Path(__file__).parent / "results" / "probes"
# Rungs of the studies that are replayed on 20 recorded rungs, and shares of the probes.
SEARCHES = ((4, "0.02"), (4, "0.05"), (4, "0.1"), (20, "0.02"), (20, "0.05"))


class Recorded(NamedTuple):
    """A recorded run: raw losses and losses of its probes by rung."""

    name: str
    raw: Mapping[int, float]
    probes: Mapping[int, float]


class Result(NamedTuple):
    """Of many orders: how often the eventual best run survived, and the mean cost in runs, without and with probes."""

    survived: int
    trained: float
    probed: float


def main() -> int:
    """Print all tables; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the kept runs")
    parser.add_argument("--orders", type=int, default=100)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for folder in sorted(path for path in options.results.iterdir() if path.is_dir()):
        packs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        print_correlations(packs)
        for rungs, share in SEARCHES:
            print_searches(own_runs(packs, share, rungs), packs[0]["updates"], float(share), options.orders)
    if os.environ.get("HPO_CURVES"):
        print_branches(Path(os.environ["HPO_CURVES"]) / "lr_schedule_curves.csv.gz")
    else:
        print("note: HPO_CURVES is not set, so the Llama runs are not replayed")
    return 0


def print_correlations(packs: Sequence[Mapping[str, Any]]) -> None:
    """Print the rank correlation with the end of raw losses and of probes, over all runs and over the best half."""
    runs = [run for pack in packs for run in pack["runs"]]
    last = str(packs[0]["rungs"])
    runs = sorted((run for run in runs if run["raw"].get(last) is not None), key=lambda run: run["raw"][last])
    print(f"\n{len(runs)} runs of {packs[0]['updates']:,} updates: rank correlation with the end")
    shares = list(runs[0]["probes"])
    print("rung | raw | " + " | ".join(f"probe {share}" for share in shares) + " | the same among the better half")
    for rung in runs[0]["probes"][shares[0]]:
        cells = []
        for chosen in (runs, runs[: len(runs) // 2]):
            end = [run["raw"][last] for run in chosen]
            values = [[run["raw"][rung] for run in chosen]]
            values += [[run["probes"][share][rung] for run in chosen] for share in shares]
            cells += [f"{rank_correlation(own, end):.2f}" for own in values]
        print(f"{int(rung) / int(last):.0%} | " + " | ".join(cells))


def own_runs(packs: Sequence[Mapping[str, Any]], share: str, n_rungs: int) -> list[Recorded]:
    """Return the kept runs as runs of fewer rungs."""
    found = []
    for pack in packs:
        rungs = {rung * pack["rungs"] // n_rungs: rung for rung in range(1, n_rungs + 1)}
        for run in pack["runs"]:
            raw = {rungs[int(r)]: v for r, v in run["raw"].items() if int(r) in rungs and v is not None}
            probes = {rungs[int(r)]: v for r, v in run["probes"].get(share, {}).items() if int(r) in rungs}
            found.append(Recorded(f"{run['schedule']} {run['lr']:g}", raw, probes))
    return [run for run in found if n_rungs in run.raw]


def print_searches(runs: Sequence[Recorded], updates: int, share: float, orders: int) -> None:
    """Print how searches end with raw losses and with probes."""
    rungs = max(runs[0].raw)
    print(f"\n{orders} orders of {len(runs)} runs with {rungs} rungs, probes of {share:g} of a run")
    print("pruner | compared | best survives | trained, in runs | probes, in runs | net saving")
    for rule in (Median(), Median(peers="finished")):
        name = rule.name + (", peers finished" if rule.peers == "finished" else "")
        for title, plan in (("raw", NO_PROBES), ("probe: auto", auto_plan(rule, rungs, updates, share))):
            result = replay(runs, rule, plan, orders)
            saving = 1 - (result.trained + result.probed) / len(runs)
            cells = (name, title, f"{result.survived} of {orders}", f"{result.trained:.1f}", f"{result.probed:.1f}")
            print(" | ".join([*cells, f"{saving:.0%}"]))


def auto_plan(rule: Median | Percentile, rungs: int, updates: int, share: float) -> ProbePlan:
    """Return what `probe: auto` decides for runs of this length, with another share."""
    plan = decide_now(rule.model_dump(mode="json"), rungs, updates, None)
    assert plan is not None, "auto waits for finished runs"
    return plan._replace(share=share)


def replay(runs: Sequence[Recorded], rule: Median | Percentile, plan: ProbePlan, orders: int) -> Result:
    """Return how searches over orders of these runs end."""
    last = max(runs[0].raw)
    best = min(range(len(runs)), key=lambda i: runs[i].raw[last])
    survived, trained, probed = 0, 0, 0
    for seed in range(orders):
        order = list(range(len(runs)))
        random.Random(seed).shuffle(order)
        for i, (rung, n_probes) in zip(order, search([runs[i] for i in order], rule, plan), strict=True):
            survived += i == best and rung == last
            trained += rung
            probed += n_probes
    return Result(survived, trained / last / orders, probed * plan.share / orders)


def search(runs: Sequence[Recorded], rule: Median | Percentile, plan: ProbePlan) -> list[tuple[int, int]]:
    """Train runs one after the other; return the last rung and the number of probes of each."""
    study, last = optuna.create_study(), max(runs[0].raw)
    pruner = CachedPruner(study, build_pruner(rule, last, Direction.MINIMIZE), last, refresh_s=0)
    pruner.set_probes(plan, build_pruner(rule_for(plan, rule), last, Direction.MINIMIZE))
    found = []
    for run in runs:
        trial = train(run, plan, lambda trial: pruner.decide(trial) == "prune")
        study.add_trial(trial)
        found.append((trial.last_step or 0, len(trial.user_attrs.get(PROBES, {}))))
    return found


def train(run: Recorded, plan: ProbePlan, is_pruned: Callable[[FrozenTrial], bool]) -> FrozenTrial:
    """Return the trial of a run that ends where it is pruned."""
    values: dict[int, float] = {}
    probes: dict[str, float] = {}
    for rung in sorted(run.raw):
        values[rung] = run.raw[rung]
        probes |= {str(rung): run.probes[rung]} if rung in plan.rungs else {}
        given: dict[str, Any] = {
            "intermediate_values": dict(values),
            "user_attrs": {PROBES: dict(probes)} if probes else {},
        }
        if is_pruned(create_trial(state=TrialState.RUNNING, **given)):
            return create_trial(state=TrialState.PRUNED, value=values[rung], **given)
    return create_trial(state=TrialState.COMPLETE, value=values[max(values)], **given)


def print_branches(path: Path) -> None:
    """Print the rank correlations of recorded decays of WSD trunks with the end of runs of 50,000 updates."""
    import pandas as pd

    curves = pd.read_csv(path)
    curves = curves[curves.family.str.startswith(("ann124", "stable-124m", "cos-10-124m", "cos-zero-124m"))]
    ends = curves.groupby("run").first()
    wsd = ends[ends.schedule.eq("wsd") & ends.decay_fraction.gt(0)].drop_duplicates(["lr", "decay_fraction", "steps"])
    final = wsd[wsd.steps.eq(50_000)].set_index(["lr", "decay_fraction"]).final_val_loss
    trunk = curves[curves.family.eq("stable-124m")].set_index(["lr", "step"]).val_loss
    print("\nLlama 124M, WSD, learning rate x decay share: rank correlation with the end of 50,000 updates")
    print("at | branch | runs | raw | branch")
    for steps in (15_000, 25_000, 35_000):
        short = wsd[wsd.steps.eq(steps)].set_index(["lr", "decay_fraction"]).final_val_loss
        for share in (0.1, 0.2):
            at = round(steps * (1 - share) / 200) * 200
            # Before their own decays begin, the runs of a learning rate are one trunk, with one branch.
            pairs = [k for k in final.index if k[1] <= 1 - at / 50_000 and (k[0], share) in short.index]
            raw = [trunk[lr, at] for lr, _ in pairs]
            branch = [short[lr, share] for lr, _ in pairs]
            end = [final[pair] for pair in pairs]
            values = (len(pairs), f"{rank_correlation(raw, end):.2f}", f"{rank_correlation(branch, end):.2f}")
            print(f"{at / 50_000:.0%} | {steps * share / 50_000:.0%} | " + " | ".join(map(str, values)))
        common = [key for key in final.index if key in short.index]
        rho = rank_correlation([short[key] for key in common], [final[key] for key in common])
        print(f"the whole schedule in {steps:,} updates | | {len(common)} | | {rho:.2f}")
    print("cosine runs share no trunk, because their rates differ from the first update on")


if __name__ == "__main__":
    sys.exit(main())

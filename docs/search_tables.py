"""The tables of docs/search.md, computed from the saved results of bench/replay.py."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from bench.replay_plan import ALL_PRUNERS, ANSWERING, OWN, POOLS_ONLY, RUNS, SAMPLERS, TASKSET, WORLD_NAMES
from docs.search_results import RESULTS, Result, Results, read_results, results_by_world
from hpo.replay.measures import GROUP, Estimate, Record, lost_share, median_ratio, pruned_share, ratio, reached, regret

BEGIN, END = "<!-- replay: begin -->", "<!-- replay: end -->"
MIN_SEEDS = 20  # of a verdict on a goal
TITLES = {"quick": "Results of `make replay`", "full": "Results of `make replay-full`"}


def with_tables(page: str, folder: Path = RESULTS) -> str:
    """Return a page with the tables of the results of a folder between its marks."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    parts = ["## Worlds", *_worlds(folder)]
    for plan, title in TITLES.items():
        parts += [f"## {title}", *_plan(folder, plan)]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}"


def _worlds(folder: Path) -> Iterator[str]:
    yield (
        "Rank: Spearman's correlation of the loss at a share of the run with the final loss. Held-out rank and error:\n"
        "of the surrogate, on configurations that it was not fitted to. The error is that of the better half. Spread:\n"
        "the standard deviation of their losses."
    )
    head = [
        "world",
        "configurations",
        "runs",
        "rungs",
        "rank at 25 %",
        "50 %",
        "75 %",
        "held-out rank",
        "error",
        "spread",
    ]
    rows = []
    for name in WORLD_NAMES:
        file = folder / "worlds" / f"{name}.json"
        if not file.is_file():
            continue
        world = json.loads(file.read_text("utf-8"))
        rungs, held = world["rungs"], world.get("held_out", {})
        ranks = [world["rank"][math.ceil(part * rungs) - 1][0] for part in (0.25, 0.5, 0.75)]
        cells = [name, str(world["configurations"]), str(world["runs"]), str(rungs), *(f"{r:.2f}" for r in ranks)]
        decimals = {"rank": 2, "rmse": 4, "spread": 4}
        rows.append(cells + [f"{held[key]:.{d}f}" if held else "-" for key, d in decimals.items()])
    yield _table(head, rows)


def _plan(folder: Path, plan: str) -> Iterator[str]:
    if not (folder / plan).is_dir():
        yield "No results are kept."
        return
    results = read_results(folder, plan)
    yield from _goals(results)
    yield from _means(results)
    yield from _safety(results)
    yield from _ratchet(results)
    yield from _searches(results)


def _goals(results: Results) -> Iterator[str]:
    yield "### Goals"
    rows = []
    for worlds, limit in ((OWN, 0.02), (TASKSET, 0.05)):
        for trials in (24, 100):
            rules = ("pool", "median", trials)
            at = [results[world, "shuffled"][rules] for world in worlds if rules in results[world, "shuffled"]]
            lost = {str(one.settings["world"]): lost_share(one.records) for one in at}
            if lost:
                worst = max(lost, key=lambda world: lost[world].value)
                goal = f"pruner median, {trials} trials: at most {limit:.0%} of the best tenth lost in each world"
                rows.append([goal, f"at most {_share(lost[worst])} ({worst})", _met(lost[worst].value <= limit, at)])
    pools = [found["pool", "asha", RUNS] for found in results.values() if ("pool", "asha", RUNS) in found]
    cheap = {"asha in random order": pools}
    cheap |= {f"{s} with asha": [*results_by_world(results, s, "asha").values()] for s in ("tpe", "auto")}
    rows += [_ratio_goal(name, found, 0.45) for name, found in cheap.items() if found]
    for name, sampler in (("the default, tpe with median", "tpe"), ("auto with median", "auto")):
        rows += _default_goals(name, results_by_world(results, sampler, "median"), results)
    yield _table(["goal", "result", ""], rows)


def _ratio_goal(name: str, found: Sequence[Result], limit: float) -> list[str]:
    value = _mean_ratio(found)
    goal = f"{name}: mean ratio at most {limit} over {len(found)} worlds"
    return [goal, f"{value:.2f}", _met(value <= limit, found)]


def _default_goals(name: str, new: dict[tuple[str, str], Result], results: Results) -> Iterator[list[str]]:
    """Yield the rows that compare rules with those of version 0.1, in the worlds in which both were measured."""
    before = results_by_world(results, "tpe-multivariate", "median-finished")
    pairs = [(new[place], before[place]) for place in new if place in before]
    if new:
        yield _ratio_goal(name, [*new.values()], 0.55)
    if pairs:
        shares = [regret(a.records, a.budget).value / regret(b.records, b.budget).value for a, b in pairs]
        value = sum(shares) / len(shares)
        goal = f"{name}: final regret at most half of that of version 0.1, mean over {len(pairs)} worlds"
        result = f"{value:.2f} ({min(shares):.2f} to {max(shares):.2f} by world)"
        yield [goal, result, _met(value <= 0.5, [one for one, _ in pairs])]
        ratios = [f"{_mean_ratio(side):.2f}" for side in zip(*pairs, strict=True)]
        yield [f"{name}: mean ratio over the same worlds, and that of version 0.1", " and ".join(ratios), ""]


def _met(is_met: bool, found: Iterable[Result]) -> str:
    """Return the verdict on a goal, which needs enough searches with each set of rules."""
    fewest = min(len(one.records) for one in found)
    if fewest < MIN_SEEDS:
        return f"{'met' if is_met else 'not met'} with {fewest} seeds, too few for a verdict"
    return "met" if is_met else "not met"


def _mean_ratio(found: Iterable[Result]) -> float:
    """Return the mean ratio over worlds; a search that does not get there within the budget counts as 1."""
    ratios = [median_ratio(one.records, one.reference, one.budget) for one in found]
    return sum(min(value, 1.0) for value in ratios) / len(ratios)


def _safety(results: Results) -> Iterator[str]:
    yield "### Configurations in random order"
    yield (
        "Lost: share of the best tenth of the world's configurations that was ended. Pruned: share of all trials. In\n"
        "brackets: 95 % bootstrap intervals over seeds."
    )
    rows = []
    for world in (*OWN, *TASKSET, *POOLS_ONLY):
        found = results[world, "shuffled"]
        for trials in sorted({key[2] for key in found}):
            for pruner in ALL_PRUNERS:
                if one := found.get(("pool", pruner, trials)):
                    cells = [
                        world,
                        str(trials),
                        pruner,
                        str(len(one.records)),
                        f"{pruned_share(one.records).value:.2f}",
                    ]
                    rows.append([*cells, _share(lost_share(one.records)), _ratio(one), _regret(one)])
    yield _table(["world", "budget", "pruner", "seeds", "pruned", "lost", "ratio", "final regret"], rows)


def _ratchet(results: Results) -> Iterator[str]:
    yield f"### Share ended, by number of the trial in groups of {GROUP}"
    rows = []
    for world in OWN:
        for pruner in ("median-finished", "median", "percentile"):
            if one := results[world, "shuffled"].get(("pool", pruner, 100)):
                parts = [slice(group, group + 1) for group in range(5)]
                for name, of in (("all trials", pruned_share), ("best tenth", lost_share)):
                    rows.append([world, pruner, name, *(f"{of(one.records, part).value:.2f}" for part in parts)])
    columns = [f"{GROUP * group}-{GROUP * (group + 1) - 1}" for group in range(5)]
    yield _table(["world", "pruner", "of", *columns], rows)


def _searches(results: Results) -> Iterator[str]:
    yield f"### Samplers and pruners, budget of {RUNS} full runs"
    yield (
        "Reached: share of pairs of searches in which the ratio is at most 1. Lost: share of the best tenth of the\n"
        "trials of each search."
    )
    rows = []
    for sampler in SAMPLERS:
        for pruner in ALL_PRUNERS:
            for (world, kind), one in results_by_world(results, sampler, pruner).items():
                trials = sum(record["trials"] for record in one.records) / len(one.records)
                cells = [
                    f"{sampler}, {pruner}",
                    f"{world}, {kind}",
                    str(len(one.records)),
                    f"{trials:.0f}",
                    _ratio(one),
                ]
                share = reached(one.records, one.reference, one.budget)
                rows.append([*cells, f"{share:.2f}", _regret(one), _share(lost_share(one.records)), _ask(one.records)])
    yield _table(["rules", "world", "seeds", "trials", "ratio", "reached", "final regret", "lost", "ask, ms"], rows)


def _means(results: Results) -> Iterator[str]:
    yield "### Means over worlds"
    yield (
        f"Rules that were measured in every world, with a budget of {RUNS} full runs. A ratio above 1 counts as 1.\n"
        "Regret: that of random search without pruning is 1. Seeds: the fewest of a world."
    )
    rows = []
    for kinds, samplers, reference in ((("shuffled",), ("pool",), "pool"), (ANSWERING, tuple(SAMPLERS), "random")):
        found = [rules for (_, kind), rules in results.items() if kind in kinds and (reference, "none", RUNS) in rules]
        for sampler, pruner in itertools.product(samplers, ALL_PRUNERS):
            measured = [rules[sampler, pruner, RUNS] for rules in found if (sampler, pruner, RUNS) in rules]
            if measured and len(measured) == len(found):
                name = "random order" if sampler == "pool" else sampler
                rows.append([f"{name}, {pruner}", *_mean_cells(measured)])
    yield _table(["rules", "worlds", "seeds", "ratio", "reached", "lost", "regret"], rows)


def _mean_cells(measured: Sequence[Result]) -> list[str]:
    regrets = [regret(o.records, o.budget).value / regret(o.reference, o.budget).value for o in measured]
    return [
        str(len(measured)),
        str(min(len(one.records) for one in measured)),
        f"{_mean_ratio(measured):.2f}",
        f"{fmean(reached(one.records, one.reference, one.budget) for one in measured):.2f}",
        f"{100 * fmean(lost_share(one.records).value for one in measured):.1f} %",
        f"{fmean(regrets):.2f}" if math.isfinite(fmean(regrets)) else "-",
    ]


def _ask(records: Sequence[Record]) -> str:
    times = sorted(record["ask_ms"] for record in records if record["ask_ms"] is not None)
    return f"{times[len(times) // 2]:.0f}" if times else "-"


def _ratio(one: Result) -> str:
    estimate = ratio(one.records, one.reference, one.budget)
    return f"{_bounded(estimate.value)} [{_bounded(estimate.low)}, {_bounded(estimate.high)}]"


def _bounded(value: float) -> str:
    return f"{value:.2f}" if value <= 1 else "> 1"


def _regret(one: Result) -> str:
    estimate = regret(one.records, one.budget)
    if not math.isfinite(estimate.value):
        return "no trial is complete in some searches"
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _share(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""The searches that bench/replay.py simulates: every cell is a world, a sampler, a pruner and a budget."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hpo.search.pruners import Pruner
from hpo.search.sampler_config import SamplerConfig
from hpo.search.samplers import Sampler

_SAMPLER: TypeAdapter[Any] = TypeAdapter(Sampler)
_PRUNER: TypeAdapter[Any] = TypeAdapter(Pruner)

OWN = ("own_names_pool", "own_titles_pool")
TASKSET = ("taskset_lstm", "taskset_gru", "taskset_irnn", "taskset_embed")
POOLS_ONLY = ("speedrun", "lr_schedule_25k")
WORLD_NAMES = (*OWN, *TASKSET, *POOLS_ONLY)
ANSWERING = ("surrogate", "nearest")  # kinds of worlds that answer any configuration
POOL_TRIALS = {"speedrun": (24, 80), "lr_schedule_25k": (17,)}  # length of the studies; other pools: 24 and 100
RUNS = 30  # budget in full runs
SURROGATE = 2  # number of the surrogate; a change of hpo.replay.surrogate that changes its curves increases it

# Name in the tables -> keys of a study file, with all fields whose default may change
SAMPLERS: dict[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "tpe": {"name": "tpe", "multivariate": False},
    "tpe-multivariate": {"name": "tpe", "multivariate": True},
    "gp": {"name": "gp"},
    "auto": {"name": "auto"},
    "cmaes": {"name": "cmaes"},
    "qmc": {"name": "qmc"},
    "nsga2": {"name": "nsga2"},
}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "median": {"name": "median", "peers": "all"},
    "median-finished": {"name": "median", "peers": "finished"},
    "percentile": {"name": "percentile", "peers": "all"},
    "percentile-finished": {"name": "percentile", "peers": "finished"},
    "asha": {"name": "asha", "min_rungs": 1, "factor": 2, "learn_from": "deepest"},
    "halving": {"name": "halving", "min_rungs": 1, "factor": 3},
    "hyperband": {"name": "hyperband", "min_rungs": 1, "factor": 3},
    "patient": {"name": "patient"},
    "wilcoxon": {"name": "wilcoxon"},
}
# Other fields of asha, to show what its defaults are worth
ASHA: dict[str, dict[str, Any]] = {
    "asha-all": {"name": "asha", "min_rungs": 1, "factor": 2, "learn_from": "all"},
    "asha-third": {"name": "asha", "min_rungs": 1, "factor": 3, "learn_from": "all"},
}
ALL_PRUNERS = PRUNERS | ASHA
BY_RUNS = ("none", "median", "asha", "asha-third")  # pruners whose pools have a budget in runs in the short plan
SLOW = ("gp", "auto")  # samplers that take most of the time


@dataclass(frozen=True)
class Cell:
    """Searches with the same rules.

    sampler: "pool" for the configurations that the world gives. runs, trials: the budget, in full runs or in trials.
    """

    world: str
    kind: str
    sampler: str
    pruner: str
    seeds: int
    runs: int | None = None
    trials: int | None = None
    workers: int = 4

    def build_sampler(self) -> SamplerConfig | None:
        """Return the sampler, None for the configurations that the world gives."""
        return _SAMPLER.validate_python(SAMPLERS[self.sampler]) if self.sampler in SAMPLERS else None

    def build_pruner(self) -> Any:
        """Return the pruner."""
        return _PRUNER.validate_python(ALL_PRUNERS[self.pruner])

    @property
    def path(self) -> Path:
        """The file of the results, below the folder of the plan."""
        budget = f"{self.runs}-runs" if self.runs is not None else f"{self.trials}-trials"
        return Path(f"{self.world}--{self.kind}") / f"{self.sampler}--{self.pruner}--{budget}.json"

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the results, as JSON values."""
        return {
            "world": self.world,
            "kind": self.kind,
            **({"surrogate": SURROGATE} if self.kind == "surrogate" else {}),
            "sampler": SAMPLERS.get(self.sampler),
            "pruner": ALL_PRUNERS[self.pruner],
            "runs": self.runs,
            "trials": self.trials,
            "workers": self.workers,
        }


def quick() -> Iterator[Cell]:
    """Yield the cells of `make replay`: the default rules old and new, ASHA and median by TPE and GP, few seeds."""
    for world in OWN:
        yield from _pools([world], ("none", "median-finished", "median"), seeds=20)
        yield from (Cell(world, "shuffled", "pool", pruner, 20, runs=RUNS) for pruner in BY_RUNS)
        for kind in ANSWERING:
            yield _search(world, kind, "random", "none", 40)
            yield _search(world, kind, "tpe-multivariate", "median-finished", 12)
            yield _search(world, kind, "tpe", "median", 12)
            yield _search(world, kind, "tpe", "asha", 12)
            yield _search(world, kind, "tpe", "asha-third", 6)
            yield _search(world, kind, "auto", "median", 8)
        yield _search(world, "surrogate", "gp", "median", 4)
        yield _search(world, "surrogate", "gp", "asha", 2)


def full() -> Iterator[Cell]:
    """Yield the cells of `make replay-full`: all samplers with all pruners on the own worlds, the main ones on others.

    The cells that decide about the defaults come first.
    """
    own, others = ([(world, kind) for world in worlds for kind in ANSWERING] for worlds in (OWN, TASKSET))
    defaults = (("auto", "median"), ("tpe-multivariate", "median-finished"), ("tpe", "median"))
    main = (*defaults, *(("tpe", pruner) for pruner in ("asha", *ASHA)), ("auto", "asha"), ("gp", "median"))
    main += (("random", "median"), ("random", "asha"))
    cells = [_search(*place, "random", "none", 60) for place in own]
    cells += [_search(*place, *rules, 20) for rules in defaults for place in own]
    cells += _pools((*OWN, *TASKSET), ("none", "median", "median-finished"), seeds=60)
    cells += [_search(*place, "random", "none", 60) for place in others]
    cells += [_search(*place, *rules, 20) for rules in main for place in (*own, *others)]
    cells += _pools(WORLD_NAMES, PRUNERS, seeds=60)
    by_runs = [*PRUNERS, "asha-third"]
    cells += [Cell(world, "shuffled", "pool", pruner, 60, RUNS) for world in (*OWN, *TASKSET) for pruner in by_runs]
    fast = [sampler for sampler in SAMPLERS if sampler not in SLOW]
    cells += [_search(*place, sampler, pruner, 20) for place in own for sampler in fast for pruner in PRUNERS]
    cells += [_search(*place, sampler, pruner, 20) for place in own for sampler in SLOW for pruner in PRUNERS]
    yield from dict.fromkeys(_largest(cells))


def _pools(worlds: Iterable[str], pruners: Iterable[str], seeds: int) -> Iterator[Cell]:
    for world in worlds:
        for trials in POOL_TRIALS.get(world, (24, 100)):
            for pruner in pruners:
                yield Cell(world, "shuffled", "pool", pruner, seeds, trials=trials)


def _search(world: str, kind: str, sampler: str, pruner: str, seeds: int) -> Cell:
    return Cell(world, kind, sampler, pruner, seeds, runs=RUNS)


def _largest(cells: list[Cell]) -> list[Cell]:
    """Return the cells without those that another cell with more seeds includes."""
    seeds: dict[Path, int] = {}
    for cell in cells:
        seeds[cell.path] = max(cell.seeds, seeds.get(cell.path, 0))
    return [cell for cell in cells if cell.seeds == seeds[cell.path]]


PLANS: dict[str, Callable[[], Iterator[Cell]]] = {"quick": quick, "full": full}

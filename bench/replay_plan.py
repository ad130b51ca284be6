"""The searches that bench/replay.py simulates: every cell is a world, a sampler, a pruner and a budget."""

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

# Name in the tables -> keys of a study file
SAMPLERS: dict[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "tpe-multivariate": {"name": "tpe", "multivariate": True},
    "tpe": {"name": "tpe", "multivariate": False},
    "gp": {"name": "gp"},
    "cmaes": {"name": "cmaes"},
    "qmc": {"name": "qmc"},
    "nsga2": {"name": "nsga2"},
}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "median-finished": {"name": "median"},
    "percentile": {"name": "percentile"},
    "halving": {"name": "halving"},
    "hyperband": {"name": "hyperband"},
    "patient": {"name": "patient"},
    "wilcoxon": {"name": "wilcoxon"},
}
RUNS = 30  # budget in full runs


@dataclass(frozen=True)
class Cell:
    """Searches with the same rules. sampler: None for the trials that the world gives. runs: budget in full runs."""

    world: str
    kind: str
    sampler_name: str
    pruner_name: str
    seeds: int
    runs: int | None = None
    trials: int | None = None
    workers: int = 4

    @property
    def sampler(self) -> SamplerConfig | None:
        return _SAMPLER.validate_python(SAMPLERS[self.sampler_name]) if self.sampler_name in SAMPLERS else None

    @property
    def pruner(self) -> Any:
        return _PRUNER.validate_python(PRUNERS[self.pruner_name])

    @property
    def path(self) -> Path:
        """The file of the results, below the folder of the plan."""
        budget = f"{self.runs}-runs" if self.runs is not None else f"{self.trials}-trials"
        kind = self.kind.replace(" ", "-")
        return Path(f"{self.world}-{kind}") / f"{self.sampler_name}--{self.pruner_name}--{budget}.json"

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the results, as JSON values."""
        return {
            "world": self.world,
            "kind": self.kind,
            "sampler": SAMPLERS.get(self.sampler_name),
            "pruner": PRUNERS[self.pruner_name],
            "runs": self.runs,
            "trials": self.trials,
            "workers": self.workers,
        }

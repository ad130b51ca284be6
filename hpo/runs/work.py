"""What a study has ahead: tokens, shapes, and the numbers of the network that its trials may have."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from hpo.search.ranges import Choices, Entry, discrete_values
from hpo.search.space import configs_with_field, field_type
from hpo.study.spec import Study
from model.config import TrainConfig

if TYPE_CHECKING:
    from model.speed.choice import Work

SHARE = 0.5  # of a full run that a trial takes on average if weak trials are pruned
MANY = 8  # shapes that a continuous range stands for


def work_ahead(study: Study) -> "Work":
    """Return the work of a study whose base is a TrainConfig, before its first trial."""
    from model.speed.choice import Work

    base, budget = study.base, study.file.budget
    assert isinstance(base, TrainConfig)
    trials = len(study.slots())
    share = 1.0 if study.file.pruner.name == "none" or study.file.arms is not None else SHARE
    tokens = min(budget.tokens or math.inf, trials * base.run.tokens * share)
    return Work(tokens, (budget.hours or math.inf) * 3600, min(trials, n_shapes(study)), trials)


def n_shapes(study: Study) -> int:
    """Return how many shapes the trials of a study may have."""
    if study.file.arms is not None:
        return len({_pack_key(study, values) for values in study.file.arms.values()})
    n = 1
    for path, entry in study.file.space.items():
        keys = {_pack_key(study, {path: value}) for value in _ends(entry)}
        if len(keys - {None}) > 1:
            kind = field_type(configs_with_field(study.base, study.file.space, path)[0], path)
            n *= len(discrete_values(entry, kind) or range(MANY))
    return n


def possible_numbers(study: Study) -> list[str]:
    """Return the numbers of the network, such as dropout probabilities, that are above 0 in any possible trial."""
    found: set[str] = set()
    for config in _extreme_configs(study):
        numbers = config.regularization.numbers() | config.model.numbers()
        found |= {name for name, value in numbers.items() if value > 0}
    return sorted(found)


def _extreme_configs(study: Study) -> Iterator[TrainConfig]:
    """Yield the base, its baselines and arms, and each of them with one field at the end of its range."""
    fixed = [{}, *study.file.baseline, *(study.file.arms or {}).values()]
    ends = [{path: value} for path, entry in study.file.space.items() for value in _ends(entry)]
    for values in (*fixed, *ends):
        config = _configured(study, values)
        if isinstance(config, TrainConfig):
            yield config


def _ends(entry: Entry) -> list[Any]:
    return list(entry.choices) if isinstance(entry, Choices) else [entry.low, entry.high]


def _configured(study: Study, values: Mapping[str, Any]) -> BaseModel | None:
    try:
        return study.configured(values)
    except ValidationError:  # values that are valid only together with others
        return None


def _pack_key(study: Study, values: Mapping[str, Any]) -> str | None:
    config = _configured(study, values)
    return config.pack_key() if isinstance(config, TrainConfig) else None

"""Train one configuration on several seeds side by side and put what was measured on a line."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hpo.config.files import load_base
from model.config import TrainConfig
from model.data.prepare import prepare
from model.section import updated
from model.train.metrics import Metrics
from model.train.trainer import Trainer


def base(name: str, values: Mapping[str, Any]) -> TrainConfig:
    """Return a base with dotted fields replaced."""
    return updated(load_base(name, "base", TrainConfig), values)


def last(config: TrainConfig, seeds: int) -> list[Metrics]:
    """Train with seeds 0, 1, ... to the end; return the metrics of the last rung of each."""
    configs = [updated(config, {"run.seed": seed}) for seed in range(seeds)]
    found: dict[int, Metrics] = {}
    for _, metrics in Trainer(configs, prepare(config.data, config.tokenizer)):
        found |= metrics
    return [found[lane] for lane in range(seeds)]


def spread(values: Sequence[float]) -> str:
    """Return mean, standard deviation and all values."""
    if len(values) < 2:
        return f"{values[0]:.4f} (one seed)"
    each = " ".join(f"{value:.4f}" for value in values)
    return f"{statistics.mean(values):.4f} (sd {statistics.stdev(values):.4f}; {each})"

"""One update of an optimizer on a pack of random weights, without a network."""

import torch

from model.config import TrainConfig
from model.nn.shapes import parameter_shapes
from model.train.params import PackParams
from model.train.run_state import StepNumbers
from model.train.tables import StepCoefficients, StepTable


def packed(configs: list[TrainConfig]) -> PackParams:
    pack = PackParams(configs[0], parameter_shapes(configs[0].model, 257), len(configs), torch.device("cpu"))
    pack.weights.normal_(generator=torch.Generator().manual_seed(0))
    return pack


def step(config: TrainConfig, pack: PackParams, number: int, lr: float | None = None) -> StepNumbers:
    """Return the numbers of one update at the peak rates, or at one rate for all."""
    rule = config.optimizer
    coefficients = []
    for group in pack.groups:
        rate = lr or rule.rate(group.name) * rule.layer_decay**group.depth
        coefficients.append({**rule.coefficients(group.name, rate, number), "rate": rate})
    return StepNumbers(coefficients, config.clip.numbers(), 0.0)


def on_device(*steps: StepNumbers) -> StepCoefficients:
    """Return the numbers of one update of several runs as tensors."""
    return StepTable(steps, 1, torch.device("cpu")).at(0)

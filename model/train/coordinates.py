"""Measure the size of activations in the first updates, for a coordinate check of model.parametrization.

Source of the check: Yang et al. 2022, arXiv:2203.03466, appendix D.1.

Shapes: K runs, B sequences, T tokens.
"""

from collections.abc import Sequence

from model.config import TrainConfig
from model.data.prepared import PreparedData
from model.nn.architecture import Transformer
from model.section import updated
from model.train.trainer import Trainer

Sizes = dict[str, list[float]]
"""Mean absolute value of the activations of a layer by its name, one number per run."""


class UpdateTrainer(Trainer):
    """A trainer whose runs all have the same gradient accumulation."""

    def train_update(self) -> None:
        """Train all runs for one update, without evaluation."""
        self._train(self.shared.run.grad_accum)


def activation_sizes(
    config: TrainConfig, n_updates: int, seeds: Sequence[int], prepared: PreparedData | None = None
) -> list[Sizes]:
    """Return the sizes of activations at the start and after each of the first updates, n_updates + 1 items.

    The runs differ in the seed and train at their peak learning rates. Sizes are measured on one batch of validation
    text, without dropout.

    prepared: the prepared data of the configuration, None to prepare or open it here.

    Raises:
        ConfigError: this machine or this text does not support what the configuration requests.
    """
    tokens = n_updates * config.update_tokens()
    length = {"run.tokens": tokens, "run.rungs": 1, "run.align": 0, "schedule.name": "constant", "schedule.warmup": 0.0}
    configs = [updated(config, {**length, "run.seed": seed}) for seed in seeds]
    trainer = UpdateTrainer(configs, prepared)
    sizes = [_sizes(trainer)]
    for _ in range(n_updates):
        trainer.train_update()
        sizes.append(_sizes(trainer))
    return sizes


def _sizes(trainer: Trainer) -> Sizes:
    tensors = trainer.validation.activation_sizes()
    return {name: x.tolist() for name, x in zip(layer_names(trainer.shared.model), tensors, strict=True)}


def layer_names(config: Transformer) -> list[str]:
    """Return the names of the activations whose size is measured, in the order of the forward pass."""
    blocks = [f"blocks.{layer}" for layer in range(config.n_layer)]
    return ["embedding", *(f"{block}{part}" for block in blocks for part in (".attn", ".mlp", "")), "logits"]

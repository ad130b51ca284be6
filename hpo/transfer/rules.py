"""Rules that carry a configuration from the scale at which it was found to another one.

The scale of a run is its length, its batch, and the width and depth of its network.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpo.transfer.rule import Rule
from model.config import TrainConfig
from model.section import flat, updated

BATCH_EXPONENT = 0.383  # of the length, in nanochat's rule
RATES = ("lr", "embedding_lr", "head_lr", "scalar_lr", "adam_lr")
DECAYS = ("weight_decay", "embedding_decay", "head_decay", "scalar_decay")
MOMENTS = ("beta1", "beta2", "momentum", "alpha")
L2_PENALTIES = ("adam", "rmsprop")  # their weight decay is divided by the gradients' size, so it has no horizon


SOURCES = {
    Rule.copy: "all values as they were found",
    Rule.nanochat: "karpathy/nanochat, scripts/base_train.py",
    Rule.horizon: "arXiv:2507.07101 (half-lives), arXiv:2405.13698 (horizon)",
}


@dataclass(frozen=True)
class Move:
    """A configuration at the scale where it was found, and the same configuration at another scale.

    goal: with the new scale and with everything else that the user set. kept: fields that the user set; rules do not
    change them.
    """

    found: TrainConfig
    goal: TrainConfig
    kept: frozenset[str] = frozenset()

    def length(self) -> float:
        """Return how many times as many tokens the new run has."""
        return self.goal.run.tokens / self.found.run.tokens

    def batch(self) -> float:
        """Return how many times as many tokens an update of the new run has."""
        return self.goal.update_tokens() / self.found.update_tokens()

    def resizes(self, field: str) -> bool:
        """Return whether the new network has another `n_embd` or `n_layer`."""
        return bool(getattr(self.goal.model, field) != getattr(self.found.model, field))

    def changes_scale(self) -> bool:
        """Return whether anything of the scale is different."""
        return self.length() != 1 or self.batch() != 1 or self.resizes("n_embd") or self.resizes("n_layer")

    def scaled(self, section: str, fields: tuple[str, ...], factor: float) -> dict[str, float]:
        """Return the numbers of a section that both configurations have and the user did not set, times a factor."""
        return {
            path: value * factor for path, value in self.numbers([f"{section}.{field}" for field in fields]).items()
        }

    def numbers(self, paths: Iterable[str]) -> dict[str, float]:
        """Return the found values of numbers that a rule may change: of the same component, and not set by the user."""
        found, goal = flat(self.found), flat(self.goal)
        names = {path.partition(".")[0] + ".name" for path in paths}
        other = tuple(name.removesuffix("name") for name in names if found.get(name) != goal.get(name))
        known = [p for p in paths if p in goal and p not in self.kept and not p.startswith(other)]
        return {path: found[path] for path in known if found.get(path)}


def nanochat(move: Move) -> dict[str, Any]:
    """Return the fields that nanochat's rule changes.

    The batch grows with the length to the power 0.383, every learning rate with the square root of the batch's ratio,
    and weight decay with that square root over the length's ratio. The batch is rounded to whole sequences, where
    nanochat rounds to a power of two.

    Source: karpathy/nanochat@92d63d4, scripts/base_train.py.
    """
    values: dict[str, Any] = {}
    if not move.kept & {"run.batch_size", "run.grad_accum"}:
        tokens = move.found.update_tokens() * move.length() ** BATCH_EXPONENT
        sequence = move.goal.run.grad_accum * move.goal.model.context
        values["run.batch_size"] = max(1, round(tokens / sequence))
    moved = Move(move.found, updated(move.goal, values), move.kept)
    growth = math.sqrt(moved.batch())
    values |= moved.scaled("optimizer", RATES, growth / _scaled_rate(moved))  # scale_lr does its part already
    return values | _decays(moved, growth / moved.length())


def horizon(move: Move) -> dict[str, Any]:
    """Return the fields that change if half-lives in tokens and the horizon's share of the run stay the same.

    A moment keeps its half-life in tokens, so beta' = beta^(B'/B). Weight decay keeps the share of the run over which
    it averages the weights, B / (lr wd D). Learning rates and batch are copied.

    Sources: Marek et al. 2025, arXiv:2507.07101; Wang & Aitchison 2024, arXiv:2405.13698.
    """
    batch = move.batch()
    moments = [f"optimizer.{field}" for field in MOMENTS] + ["regularization.ema", "schedule.beta1_dip"]
    if move.found.optimizer.name == "lion":
        moments.remove("optimizer.beta1")  # the weight of a momentum, which decays with beta2
    values: dict[str, Any] = {path: value**batch for path, value in move.numbers(moments).items() if batch != 1}
    rate = move.goal.optimizer.lr / move.found.optimizer.lr * _scaled_rate(move)
    return values | _decays(move, batch / (rate * move.length()))


def _scaled_rate(move: Move) -> float:
    """Return the ratio of the learning rates that scale_lr alone gives."""
    scales = [config.optimizer.scale(config.update_tokens()) for config in (move.goal, move.found)]
    return scales[0] / scales[1]


def _decays(move: Move, factor: float) -> dict[str, Any]:
    """Return weight decays times a factor, and a searched horizon as the same share of the run."""
    if move.goal.optimizer.name in L2_PENALTIES:
        return {}
    decays = move.scaled("optimizer", DECAYS, factor)
    return decays | move.scaled("optimizer", ("decay_horizon",), move.length())


def rule_values(move: Move, rule: Rule, fitted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a rule changes at the new scale, by dotted path.

    fitted: fields that a fitted law predicts.

    Raises:
        pydantic.ValidationError: the rule gives a configuration that is not valid.
    """
    values: Mapping[str, Any] = {}
    if rule is Rule.nanochat:
        values = nanochat(move)
    elif rule is Rule.horizon:
        values = horizon(move)
    elif rule is Rule.fitted:
        values = {path: value for path, value in fitted.items() if path not in move.kept}
    now = flat(move.goal)
    return {path: value for path, value in values.items() if now.get(path) != value}

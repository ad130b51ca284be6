"""What every optimizer has: rates and weight decay by parameter group. The optimizers are in model/optim.py.

A rule has two halves. `coefficients` turns one run's hyperparameters into the numbers of one update, in Python's
double precision: 1 - beta2 in float32 is off by 6e-5 at beta2 = 0.999. `update` applies them to all rows at once;
there they are floats where K = 1 and (K, 1) tensors otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from model.optim.param_groups import GROUPS, Group, ParamGroup
from model.section import Count, Decay, NonNegative, Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

Coefficients = Mapping[str, Any]
State = Mapping[str, "Tensor"]


class Rule(Section):
    """A peak rate and a weight decay for each group of parameters: matrices, embeddings, head, scalars."""

    lr: Positive = 1e-3
    """Peak learning rate; the schedule multiplies it."""
    embedding_lr: Positive | None = None
    """Peak rate of token and position embeddings; none: lr."""
    head_lr: Positive | None = None
    """Peak rate of an untied head; none: lr."""
    scalar_lr: Positive | None = None
    """Peak rate of gains, biases, skip weights and routers; none: lr."""
    layer_decay: Positive = 1.0
    """Factor on the rate from each block to the one below, the last one having the peak; embeddings are below the
    first. Above 1, lower blocks learn faster (Howard & Ruder 2018, arXiv:1801.06146)."""
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """How rates grow with the tokens of an update (Goyal et al. 2017, arXiv:1706.02677; sqrt suits Adam)."""
    scale_lr_tokens: Count | None = None
    """Tokens of the update that the rates are meant for, where they scale."""
    weight_decay: NonNegative = 0.0
    """How much is decayed; each member says of what."""
    embedding_decay: NonNegative | None = None
    """Weight decay of embeddings; none: weight_decay."""
    head_decay: NonNegative | None = None
    """Weight decay of an untied head; none: weight_decay."""
    scalar_decay: NonNegative = 0.0
    """Weight decay of gains, biases, skip weights and routers. It fights the norm layers."""

    @model_validator(mode="after")
    def _scales_from_somewhere(self) -> Self:
        if (self.scale_lr == "none") != (self.scale_lr_tokens is None):
            raise ValueError(
                "scale_lr and scale_lr_tokens go together: the rates scale from an update of so many tokens, "
                f"got {self.scale_lr} and {self.scale_lr_tokens}"
            )
        return self

    def rate(self, group: Group) -> float:
        """Return the peak rate of a group."""
        own: float | None = getattr(self, f"{group}_lr", None)
        return self.lr if own is None else own

    def decay(self, group: Group) -> float:
        """Return the weight decay of a group."""
        own: float | None = getattr(self, f"{group}_decay", None)
        return self.weight_decay if own is None else own

    def scale(self, update_tokens: int) -> float:
        """Return the factor on all rates for updates of so many tokens."""
        if self.scale_lr_tokens is None:
            return 1.0
        ratio = update_tokens / self.scale_lr_tokens
        return ratio if self.scale_lr == "linear" else math.sqrt(ratio)

    def state(self) -> dict[str, tuple[Group, ...]]:
        """Return the names of the tensors kept, each for some neighbours in GROUPS; they begin at zero."""
        return {}

    def coefficients(self, group: Group, lr: float, step: int, beta1: float | None = None) -> dict[str, float]:
        """Return the numbers of one update of a group.

        lr: already scheduled. step: 1 at the first update. beta1: in force now, where the schedule moves it.
        """
        raise AssertionError(f"{type(self).__name__} has no coefficients")

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, part: ParamGroup) -> None:
        """Take one step in place. p, g and every state tensor: (K, n), the columns of a part."""
        raise AssertionError(f"{type(self).__name__} has no update")


class Moments(Rule):
    """What the Adam family keeps: running means of gradients and of their squares."""

    beta1: Decay = 0.9
    """Decay of the mean of gradients."""
    beta2: Decay = 0.95
    """Decay of the mean of squared gradients."""
    eps: Positive = 1e-8
    """Added to the root of the mean square."""

    def state(self) -> dict[str, tuple[Group, ...]]:
        return {"m": GROUPS, "v": GROUPS}

    def moments(self, lr: float, step: int, beta1: float | None) -> dict[str, float]:
        """Return Adam's numbers of one update, the corrections for zero starts included (algorithm 1)."""
        beta1 = self.beta1 if beta1 is None else beta1
        return {
            "m_rate": 1 - beta1,
            "v_rate": 1 - self.beta2,
            "eps": self.eps,
            "lr": lr / (1 - beta1**step),
            "v_scale": 1 / math.sqrt(1 - self.beta2**step),
        }


def adam(p: Tensor, g: Tensor, state: State, c: Coefficients) -> None:
    """Take one step of Adam (Kingma & Ba 2015, arXiv:1412.6980)."""
    m = state["m"].lerp_(g, c["m_rate"])
    v = state["v"].lerp_(g * g, c["v_rate"])
    p.sub_((m / v.sqrt().mul_(c["v_scale"]).add_(c["eps"])).mul_(c["lr"]))

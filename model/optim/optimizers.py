"""Optimizers over stacked parameters: every tensor is (K, n), one row per run. What they share is in model/rule.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from model.optim.clipping import LARGEST
from model.optim.muon import Muon
from model.optim.optimizer import Coefficients, Moments, Rule, State, adam
from model.optim.param_groups import GROUPS, Group, ParamGroup
from model.section import Decay, NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


class AdamW(Moments):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    weight_decay: NonNegative = 0.1
    """Share of a weight taken off in each update, per unit of learning rate."""

    def coefficients(self, group: Group, lr: float, step: int, beta1: float | None = None) -> dict[str, float]:
        return self.moments(lr, step, beta1) | {"decay": lr * self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, part: ParamGroup) -> None:
        p.mul_(1 - c["decay"])
        adam(p, g, state, c)


class StableAdamW(Moments):
    """AdamW whose rate is cut, tensor by tensor, where gradients outgrow their running mean square.

    Source: Wortsman et al. 2023, arXiv:2304.13013, algorithm 2. It takes the place of gradient clipping.
    """

    name: Literal["stable-adamw"] = "stable-adamw"
    weight_decay: NonNegative = 0.1
    """Share of a weight taken off in each update, per unit of learning rate."""

    def coefficients(self, group: Group, lr: float, step: int, beta1: float | None = None) -> dict[str, float]:
        return self.moments(lr, step, beta1) | {"decay": lr * self.decay(group), "least": self.eps**2}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, part: ParamGroup) -> None:
        squares = (g * g).clamp(max=LARGEST)  # infinity over infinity would be nan
        m = state["m"].lerp_(g, c["m_rate"])
        v = state["v"].lerp_(squares, c["v_rate"])
        root = v.sqrt().mul_(c["v_scale"])  # of the mean square without its bias
        rms = part.mean(squares / (root * root).clamp(min=c["least"])).sqrt()  # (K, tensors)
        cut = part.spread(1 / rms.clamp(min=1.0))
        p.sub_(cut * (c["lr"] * m / (root + c["eps"]) + c["decay"] * p))


class Adam(Moments):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980); weight decay is an L2 penalty inside the gradient."""

    name: Literal["adam"] = "adam"
    beta2: Decay = 0.999
    """Decay of the mean of squared gradients."""
    weight_decay: NonNegative = 0.0
    """L2 penalty: this share of each weight is added to its gradient."""

    def coefficients(self, group: Group, lr: float, step: int, beta1: float | None = None) -> dict[str, float]:
        return self.moments(lr, step, beta1) | {"decay": self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, part: ParamGroup) -> None:
        adam(p, g + p * c["decay"], state, c)


class Lion(Rule):
    """The sign of a momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""

    name: Literal["lion"] = "lion"
    lr: Positive = 1e-4
    """Peak learning rate; 3 to 10 times smaller than AdamW's."""
    beta1: Decay = 0.9
    """Share of the momentum in the step."""
    beta2: Decay = 0.99
    """Decay of the momentum."""
    weight_decay: NonNegative = 0.1
    """Share of a weight taken off in each update, per unit of learning rate."""

    @model_validator(mode="after")
    def _has_a_momentum(self) -> Self:
        if self.beta1 == 0 and self.beta2 != Lion.model_fields["beta2"].default:
            raise ValueError(f"beta2 is of a momentum that beta1 = 0 leaves out of the step; got {self.beta2}")
        return self

    def state(self) -> dict[str, tuple[Group, ...]]:
        return {"m": GROUPS}

    def coefficients(self, group: Group, lr: float, step: int, beta1: float | None = None) -> dict[str, float]:
        rates = {"step_rate": 1 - (self.beta1 if beta1 is None else beta1), "m_rate": 1 - self.beta2}
        return rates | {"lr": lr, "decay": lr * self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, part: ParamGroup) -> None:
        step = state["m"].lerp(g, c["step_rate"]).sign_()
        p.mul_(1 - c["decay"]).sub_(step * c["lr"])
        state["m"].lerp_(g, c["m_rate"])


class SGD(Rule):
    """Gradient descent with momentum (Sutskever et al. 2013), as torch.optim.SGD writes it."""

    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.1
    """Peak learning rate; the schedule multiplies it."""
    momentum: Decay = 0.9
    """Decay of the sum of gradients; 0 is plain gradient descent."""
    nesterov: bool = False
    """Look ahead by one momentum step."""
    weight_decay: NonNegative = 0.0
    """L2 penalty: this share of each weight is added to its gradient."""

    @model_validator(mode="after")
    def _looks_ahead_by_something(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead by a momentum step: needs momentum above 0, got 0")
        return self

    def state(self) -> dict[str, tuple[Group, ...]]:
        return {"m": GROUPS}

    def coefficients(self, group: Group, lr: float, step: int, beta1: float | None = None) -> dict[str, float]:
        return {"lr": lr, "momentum": self.momentum, "decay": self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, part: ParamGroup) -> None:
        g = g + p * c["decay"]
        m = state["m"].mul_(c["momentum"]).add_(g)
        p.sub_((g + m * c["momentum"] if self.nesterov else m) * c["lr"])


class RMSprop(Rule):
    """Gradients over the root of their running mean square (Hinton 2012), as torch.optim.RMSprop writes it."""

    name: Literal["rmsprop"] = "rmsprop"
    alpha: Decay = 0.99
    """Decay of the mean of squared gradients."""
    eps: Positive = 1e-8
    """Added to the root of the mean square."""
    momentum: Decay = 0.0
    """Decay of the sum of scaled gradients."""
    weight_decay: NonNegative = 0.0
    """L2 penalty: this share of each weight is added to its gradient."""

    def state(self) -> dict[str, tuple[Group, ...]]:
        return {"m": GROUPS, "v": GROUPS}

    def coefficients(self, group: Group, lr: float, step: int, beta1: float | None = None) -> dict[str, float]:
        rates = {"v_rate": 1 - self.alpha, "eps": self.eps, "momentum": self.momentum}
        return rates | {"lr": lr, "decay": self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, part: ParamGroup) -> None:
        g = g + p * c["decay"]
        v = state["v"].lerp_(g * g, c["v_rate"])
        m = state["m"].mul_(c["momentum"]).add_(g / v.sqrt().add_(c["eps"]))
        p.sub_(m * c["lr"])


Optimizer = Annotated[
    AdamW | Adam | StableAdamW | Muon | Lion | SGD | RMSprop,
    Field(discriminator="name"),
]

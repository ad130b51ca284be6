"""Optimizers over stacked parameters: every tensor is (K, P), one row per run.

A rule has two halves. `coefficients` turns one run's hyperparameters into the numbers of one update, in Python's
double precision: 1 - beta2 in float32 is off by 6e-5 at beta2 = 0.999. `update` applies them to all rows at once;
there they are floats where K = 1 and (K, 1) tensors otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from model.section import Decay, NonNegative, Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

Coefficients = Mapping[str, Any]


class Rule(Section):
    """What every optimizer has: a peak rate, a weight decay and what it is applied to."""

    lr: Positive = 1e-3
    """Peak learning rate; the schedule multiplies it."""
    decay: Literal["matrices", "all"] = "matrices"
    """What weight decay acts on. Gains and biases are left out by default: decay fights the norm layers."""

    def state(self) -> tuple[str, ...]:
        """Return the names of the tensors kept for every parameter, zero at the start."""
        return ()

    def coefficients(self, lr: float, step: int) -> dict[str, float]:
        """Return the numbers of one update; "decay" is the one that weight decay enters by.

        lr: already scheduled. step: 1 at the first update.
        """
        raise AssertionError(f"{type(self).__name__} has no coefficients")

    def update(self, p: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Coefficients) -> None:
        """Take one step in place. p, g and every state tensor: (K, P)."""
        raise AssertionError(f"{type(self).__name__} has no update")


class Moments(Rule):
    """What the Adam family keeps: running means of gradients and of their squares."""

    beta1: Decay = 0.9
    """Decay of the mean of gradients."""
    beta2: Decay = 0.95
    """Decay of the mean of squared gradients."""
    eps: Positive = 1e-8
    """Added to the root of the mean square."""
    weight_decay: NonNegative = 0.0
    """How much is decayed; each member says of what."""

    def state(self) -> tuple[str, ...]:
        return ("m", "v")


class AdamW(Moments):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    weight_decay: NonNegative = 0.1
    """Share of a weight taken off in each update, per unit of learning rate."""

    def coefficients(self, lr: float, step: int) -> dict[str, float]:
        moments = _moments(self.beta1, self.beta2, self.eps, lr, step)
        return moments | {"decay": lr * self.weight_decay}

    def update(self, p: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Coefficients) -> None:
        p.mul_(1 - c["decay"])
        _adam(p, g, state, c)


class Adam(Moments):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980); weight decay is an L2 penalty inside the gradient."""

    name: Literal["adam"] = "adam"
    beta2: Decay = 0.999
    """Decay of the mean of squared gradients."""
    weight_decay: NonNegative = 0.0
    """L2 penalty: this share of each weight is added to its gradient."""

    def coefficients(self, lr: float, step: int) -> dict[str, float]:
        moments = _moments(self.beta1, self.beta2, self.eps, lr, step)
        return moments | {"decay": self.weight_decay}

    def update(self, p: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Coefficients) -> None:
        _adam(p, g + p * c["decay"], state, c)


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

    def state(self) -> tuple[str, ...]:
        return ("m",)

    def coefficients(self, lr: float, step: int) -> dict[str, float]:
        return {"lr": lr, "momentum": self.momentum, "decay": self.weight_decay}

    def update(self, p: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Coefficients) -> None:
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

    def state(self) -> tuple[str, ...]:
        return ("m", "v")

    def coefficients(self, lr: float, step: int) -> dict[str, float]:
        rates = {"v_rate": 1 - self.alpha, "eps": self.eps, "momentum": self.momentum}
        return rates | {"lr": lr, "decay": self.weight_decay}

    def update(self, p: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Coefficients) -> None:
        g = g + p * c["decay"]
        v = state["v"].lerp_(g * g, c["v_rate"])
        m = state["m"].mul_(c["momentum"]).add_(g / v.sqrt().add_(c["eps"]))
        p.sub_(m * c["lr"])


def _moments(beta1: float, beta2: float, eps: float, lr: float, step: int) -> dict[str, float]:
    """Return Adam's numbers of one update, the corrections for zero starts included (algorithm 1)."""
    return {
        "m_rate": 1 - beta1,
        "v_rate": 1 - beta2,
        "eps": eps,
        "lr": lr / (1 - beta1**step),
        "v_scale": 1 / math.sqrt(1 - beta2**step),
    }


def _adam(p: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Coefficients) -> None:
    m = state["m"].lerp_(g, c["m_rate"])
    v = state["v"].lerp_(g * g, c["v_rate"])
    p.sub_((m / v.sqrt().mul_(c["v_scale"]).add_(c["eps"])).mul_(c["lr"]))


Optimizer = Annotated[AdamW | Adam | SGD | RMSprop, Field(discriminator="name")]

"""Optimizers that update K runs together: every tensor is (K, n), one row per run.

To add an optimizer, write one class with a `name` here or in a module of its own, and add it to the union `Optimizer`
at the end of this file. optimizer.py describes the methods of such a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.optim.clipping import LARGEST
from model.optim.muon import Muon
from model.optim.optimizer import (
    Coefficients,
    DecayHorizon,
    Moments,
    Number,
    Numbers,
    State,
    UpdateRule,
    adam_step,
)
from model.optim.param_groups import GROUP_NAMES, GroupName, ParamGroup
from model.section import Decay, NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


class AdamW(Moments, DecayHorizon):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    has_parametrizations: ClassVar[bool] = True
    forms: ClassVar[Mapping[str, str]] = {**Moments.forms, **DecayHorizon.forms}

    name: Literal["adamw"] = "adamw"
    weight_decay: NonNegative | None = 0.1
    """Fraction of each weight subtracted in each update, per unit of learning rate. None: from decay_horizon."""

    def rescaled(self, hidden_lr: float, hidden_decay: float, eps: float) -> Self:
        others = GROUP_NAMES[1:]
        kept = {f"{group}_lr": self.rate(group) for group in others}
        kept |= {f"{group}_decay": self.decay(group) for group in others}
        hidden = {"lr": self.lr * hidden_lr, "weight_decay": self.decay("matrix") * hidden_decay}
        return self.model_copy(update=kept | hidden | {"eps": self.eps * eps})

    def coefficients(self, group: GroupName, lr: Number, step: Number, beta1: Number | None = None) -> Numbers:
        return self.moments(lr, step, beta1) | {"decay": lr * self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, group: ParamGroup) -> None:
        p.mul_(1 - c["decay"])
        adam_step(p, g, state, c)


class StableAdamW(Moments, DecayHorizon):
    """AdamW that lowers the learning rate of a tensor while its gradients are larger than their running mean.

    The learning rate is divided by max(1, r), where r is the root mean square of g / sqrt(v) over the tensor: g is the
    gradient and v the running mean of its square. Meant as a replacement for gradient clipping (`clip.name: none`).
    Source: Wortsman et al. 2023, arXiv:2304.13013, algorithm 2.
    """

    forms: ClassVar[Mapping[str, str]] = {**Moments.forms, **DecayHorizon.forms}

    name: Literal["stable-adamw"] = "stable-adamw"
    weight_decay: NonNegative | None = 0.1
    """Fraction of each weight subtracted in each update, per unit of learning rate. None: from decay_horizon."""

    def coefficients(self, group: GroupName, lr: Number, step: Number, beta1: Number | None = None) -> Numbers:
        return self.moments(lr, step, beta1) | {"decay": lr * self.decay(group), "least": self.eps**2}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, group: ParamGroup) -> None:
        squares = (g * g).clamp(max=LARGEST)  # infinity divided by infinity would be nan
        exp_avg = state["exp_avg"].lerp_(g, c["one_minus_beta1"])
        exp_avg_sq = state["exp_avg_sq"].lerp_(squares, c["one_minus_beta2"])
        root = exp_avg_sq.sqrt().mul_(c["bias_correction2_rsqrt"])
        rms = group.means(squares / (root * root).clamp(min=c["least"])).sqrt()  # (K, tensors)
        scale = group.expand(1 / rms.clamp(min=1.0))
        p.sub_(scale * (c["step_size"] * exp_avg / (root + c["eps"]) + c["decay"] * p))


class Adam(Moments):
    """Adam with an L2 penalty in the gradient as weight decay (Kingma & Ba 2015, arXiv:1412.6980)."""

    name: Literal["adam"] = "adam"
    beta2: Decay | None = 0.999
    """Decay per update of the running mean of squared gradients. None: from beta2_half_life."""
    weight_decay: NonNegative = 0.0
    """L2 penalty: fraction of each weight added to its gradient."""

    def coefficients(self, group: GroupName, lr: Number, step: Number, beta1: Number | None = None) -> Numbers:
        return self.moments(lr, step, beta1) | {"decay": self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, group: ParamGroup) -> None:
        adam_step(p, g + p * c["decay"], state, c)


class Lion(UpdateRule, DecayHorizon):
    """Update each weight by the sign of a momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""

    forms: ClassVar[Mapping[str, str]] = {**DecayHorizon.forms, "beta2": "beta2_half_life"}

    name: Literal["lion"] = "lion"
    lr: Positive = 1e-4
    """Peak learning rate, 3 to 10 times smaller than for AdamW. The schedule multiplies it."""
    beta1: Decay = 0.9
    """Weight of the momentum in the update; the gradient has weight 1 - beta1."""
    beta2: Decay | None = 0.99
    """Decay per update of the momentum. None: from beta2_half_life."""
    beta2_half_life: Positive | None = None
    """Half-life in tokens of the momentum, in place of beta2, which is 0.5^(tokens of an update / half-life)."""
    weight_decay: NonNegative | None = 0.1
    """Fraction of each weight subtracted in each update, per unit of learning rate. None: from decay_horizon."""

    @model_validator(mode="after")
    def _beta2_has_an_effect(self) -> Self:
        if self.beta1 == 0 and self.beta2 != Lion.model_fields["beta2"].default:
            field = "beta2" if self.beta2 is not None else "beta2_half_life"
            raise ValueError(f"{field} has no effect if beta1 is 0, leave it out, got {getattr(self, field)}")
        return self

    def state_groups(self) -> dict[str, tuple[GroupName, ...]]:
        return {"exp_avg": GROUP_NAMES}

    def coefficients(self, group: GroupName, lr: Number, step: Number, beta1: Number | None = None) -> Numbers:
        beta1 = self.beta1 if beta1 is None else beta1
        assert self.beta2 is not None, "the trainer uses TrainConfig.with_raw_fields()"
        rates = {"one_minus_beta1": 1 - beta1, "one_minus_beta2": 1 - self.beta2}
        return rates | {"lr": lr, "decay": lr * self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, group: ParamGroup) -> None:
        step = state["exp_avg"].lerp(g, c["one_minus_beta1"]).sign_()
        p.mul_(1 - c["decay"]).sub_(step * c["lr"])
        state["exp_avg"].lerp_(g, c["one_minus_beta2"])


class SGD(UpdateRule):
    """Gradient descent with momentum, as in torch.optim.SGD (Sutskever et al. 2013)."""

    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.1
    """Peak learning rate. The schedule multiplies it."""
    momentum: Decay = 0.9
    """Decay per update of the sum of gradients. 0 is plain gradient descent."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    weight_decay: NonNegative = 0.0
    """L2 penalty: fraction of each weight added to its gradient."""

    @model_validator(mode="after")
    def _nesterov_has_a_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, got 0")
        return self

    def state_groups(self) -> dict[str, tuple[GroupName, ...]]:
        return {"momentum_buffer": GROUP_NAMES}

    def coefficients(self, group: GroupName, lr: Number, step: Number, beta1: Number | None = None) -> Numbers:
        return {"lr": lr, "momentum": self.momentum, "decay": self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, group: ParamGroup) -> None:
        g = g + p * c["decay"]
        buffer = state["momentum_buffer"].mul_(c["momentum"]).add_(g)
        p.sub_((g + buffer * c["momentum"] if self.nesterov else buffer) * c["lr"])


class RMSprop(UpdateRule):
    """Divide gradients by the root of their running mean square, as in torch.optim.RMSprop (Hinton 2012)."""

    name: Literal["rmsprop"] = "rmsprop"
    alpha: Decay = 0.99
    """Decay per update of the running mean of squared gradients."""
    eps: Positive = 1e-8
    """Added to the root of the running mean of squared gradients."""
    momentum: Decay = 0.0
    """Decay per update of the sum of divided gradients."""
    weight_decay: NonNegative = 0.0
    """L2 penalty: fraction of each weight added to its gradient."""

    def state_groups(self) -> dict[str, tuple[GroupName, ...]]:
        return {"momentum_buffer": GROUP_NAMES, "square_avg": GROUP_NAMES}

    def coefficients(self, group: GroupName, lr: Number, step: Number, beta1: Number | None = None) -> Numbers:
        rates = {"one_minus_alpha": 1 - self.alpha, "eps": self.eps, "momentum": self.momentum}
        return rates | {"lr": lr, "decay": self.decay(group)}

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, group: ParamGroup) -> None:
        g = g + p * c["decay"]
        square_avg = state["square_avg"].lerp_(g * g, c["one_minus_alpha"])
        buffer = state["momentum_buffer"].mul_(c["momentum"]).add_(g / square_avg.sqrt().add_(c["eps"]))
        p.sub_(buffer * c["lr"])


Optimizer = Annotated[
    AdamW | Adam | StableAdamW | Muon | Lion | SGD | RMSprop,
    Field(discriminator="name"),
]

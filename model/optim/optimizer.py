"""What all optimizers share: learning rates and weight decay per parameter group. optimizers.py defines each optimizer.

An optimizer has two halves. `coefficients` computes the numbers of one update from one run's hyperparameters, in
Python's double precision, because 1 - beta2 in float32 is off by 6e-5 at beta2 = 0.999. `update` applies them to the
rows of all K runs together. There, each coefficient is a (K, 1) tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.optim.param_groups import GROUP_NAMES, GroupName, ParamGroup
from model.section import Count, Decay, NonNegative, Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

Number = Any
"""A float, or a NumPy array with one number per update."""
Numbers = dict[str, Number]
Coefficients = Mapping[str, Any]
"""Numbers of one update, (K, 1) tensors."""
State = Mapping[str, "Tensor"]
"""State tensors by name, (K, n) each, with the columns of one parameter group."""

STATE_NAMES_0_1 = {"exp_avg": "m", "momentum_buffer": "m", "exp_avg_sq": "v", "square_avg": "v"}
"""Names of the state tensors in checkpoints of version 0.1, by today's name."""


Exponent = Annotated[float, Field(gt=0, le=1)]


def decay_of_half_life(half_life: float, update_tokens: int) -> float:
    """Return the decay per update of a moving average with this half-life in tokens.

    Source: Marek et al. 2025, arXiv:2507.07101.
    """
    return float(0.5 ** (update_tokens / half_life))


class UpdateRule(Section):
    """A learning rate and a weight decay for each parameter group: matrix, embedding, head, scalar."""

    has_parametrizations: ClassVar[bool] = False
    """Whether the rules of model.parametrization cover this optimizer."""

    lr: Positive = 1e-3
    """Peak learning rate. The schedule multiplies it."""
    embedding_lr: Positive | None = None
    """Peak learning rate of token and position embeddings. None: same as lr."""
    head_lr: Positive | None = None
    """Peak learning rate of an untied head. None: same as lr."""
    scalar_lr: Positive | None = None
    """Peak learning rate of gains, biases, skip weights and routers. None: same as lr."""
    layer_decay: Positive = 1.0
    """Factor on the learning rate from each block to the block below. The last block has the peak learning rate; the
    embeddings are below the first block. Above 1, lower blocks learn faster (Howard & Ruder 2018, arXiv:1801.06146)."""
    scale_lr: Literal["none", "linear", "sqrt"] | Exponent = "none"
    """How the learning rates grow with the number of tokens per update (Goyal et al. 2017, arXiv:1706.02677). sqrt
    suits Adam. A number is the exponent: 0.5 is sqrt, and 1 is linear."""
    scale_lr_tokens: Count | None = None
    """Tokens per update for which the learning rates are given. Required with scale_lr."""
    weight_decay: NonNegative | None = 0.0
    """Weight decay of matrices, and of every group without a weight decay of its own."""
    embedding_decay: NonNegative | None = None
    """Weight decay of token and position embeddings. None: same as weight_decay."""
    head_decay: NonNegative | None = None
    """Weight decay of an untied head. None: same as weight_decay."""
    scalar_decay: NonNegative = 0.0
    """Weight decay of gains, biases, skip weights and routers. Values above 0 pull the gains of the norm layers toward
    0."""

    @model_validator(mode="after")
    def _scale_lr_is_complete(self) -> Self:
        if (self.scale_lr == "none") != (self.scale_lr_tokens is None):
            raise ValueError(
                "scale_lr and scale_lr_tokens must be set together: scale_lr_tokens is the update size at which lr "
                f"applies, got {self.scale_lr} and {self.scale_lr_tokens}"
            )
        return self

    def rate(self, group: GroupName) -> float:
        """Return the peak learning rate of a group."""
        own: float | None = getattr(self, f"{group}_lr", None)
        return self.lr if own is None else own

    def decay(self, group: GroupName) -> float:
        """Return the weight decay of a group."""
        own: float | None = getattr(self, f"{group}_decay", None)
        value = self.weight_decay if own is None else own
        assert value is not None, "the trainer uses TrainConfig.with_raw_fields()"
        return value

    def scale(self, update_tokens: int) -> float:
        """Return the factor on all learning rates for updates of `update_tokens` tokens."""
        if self.scale_lr_tokens is None:
            return 1.0
        ratio = update_tokens / self.scale_lr_tokens
        if isinstance(self.scale_lr, float):
            return float(ratio**self.scale_lr)
        return ratio if self.scale_lr == "linear" else math.sqrt(ratio)

    def derived(self, update_tokens: int) -> dict[str, float]:
        """Return the raw fields that follow from half-lives and a decay horizon, for updates of `update_tokens`
        tokens, by name.

        Sources: Marek et al. 2025, arXiv:2507.07101 (half-lives); Wang & Aitchison 2024, arXiv:2405.13698 (horizon).
        """
        values: dict[str, float] = {}
        for raw, other in self.forms.items():
            given: float | None = getattr(self, other)
            if given is None:
                continue
            if other == "decay_horizon":
                values[raw] = update_tokens / (self.lr * self.scale(update_tokens) * given)
            else:
                values[raw] = decay_of_half_life(given, update_tokens)
        return values

    def rescaled(self, hidden_lr: float, hidden_decay: float, eps: float) -> Self:
        """Return this optimizer with the factors of model.parametrization on its hyperparameters.

        Only optimizers with `has_parametrizations` have this method.

        The optimizer has raw fields. hidden_lr, hidden_decay: on Adam's learning rate and weight decay of matrices.
        eps: on Adam's eps.
        """
        raise AssertionError(f"{type(self).__name__} has no rules of parametrization")

    def state_groups(self) -> dict[str, tuple[GroupName, ...]]:
        """Return the names of the state tensors, and for each the groups that have it.

        The groups must be neighbours in GROUP_NAMES. All state tensors are zero before the first update.
        """
        return {}

    def coefficients(self, group: GroupName, lr: Number, step: Number, beta1: Number | None = None) -> Numbers:
        """Return the numbers of one update of a group.

        lr: learning rate of this update, schedule included. step: 1 in the first update. beta1: value in this update,
        if the schedule changes it. Arrays give the numbers of several updates.
        """
        raise AssertionError(f"{type(self).__name__} has no coefficients")

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, group: ParamGroup) -> None:
        """Update the parameters of a group in place.

        p: parameters, (K, n). g: gradients, (K, n). state: (K, n) each. c: from `coefficients`. n: parameters of the
        group in one run.
        """
        raise AssertionError(f"{type(self).__name__} has no update")


class Moments(UpdateRule):
    """Hyperparameters and state of the Adam family: running means of gradients and of squared gradients."""

    forms: ClassVar[Mapping[str, str]] = {"beta1": "beta1_half_life", "beta2": "beta2_half_life"}

    beta1: Decay | None = 0.9
    """Decay per update of the running mean of gradients. None: from beta1_half_life."""
    beta1_half_life: Positive | None = None
    """Half-life in tokens of the running mean of gradients, in place of beta1, which is 0.5^(tokens of an update /
    half-life). It does not depend on the batch size (Marek et al. 2025, arXiv:2507.07101)."""
    beta2: Decay | None = 0.95
    """Decay per update of the running mean of squared gradients. None: from beta2_half_life."""
    beta2_half_life: Positive | None = None
    """Half-life in tokens of the running mean of squared gradients, in place of beta2, which is 0.5^(tokens of an
    update / half-life). It does not depend on the batch size (Marek et al. 2025, arXiv:2507.07101)."""
    eps: Positive = 1e-8
    """Added to the root of the running mean of squared gradients."""

    def state_groups(self) -> dict[str, tuple[GroupName, ...]]:
        return {"exp_avg": GROUP_NAMES, "exp_avg_sq": GROUP_NAMES}

    def moments(self, lr: Number, step: Number, beta1: Number | None) -> Numbers:
        """Return Adam's numbers of one update, with the bias corrections.

        Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
        """
        beta1, beta2 = self.beta1 if beta1 is None else beta1, self.beta2
        assert beta1 is not None, "the trainer uses TrainConfig.with_raw_fields()"
        assert beta2 is not None, "the trainer uses TrainConfig.with_raw_fields()"
        return {
            "one_minus_beta1": 1 - beta1,
            "one_minus_beta2": 1 - beta2,
            "eps": self.eps,
            "step_size": lr / (1 - beta1**step),
            "bias_correction2_rsqrt": (1 - beta2**step) ** -0.5,
        }


class DecayHorizon(Section):
    """A horizon in tokens in place of weight decay, for optimizers whose decay is decoupled from the gradient."""

    forms: ClassVar[Mapping[str, str]] = {"weight_decay": "decay_horizon"}

    decay_horizon: Positive | None = None
    """Number of tokens over which weight decay averages the weights, in place of weight_decay, which is tokens of an
    update / (lr x horizon), with lr after scale_lr (Wang & Aitchison 2024, arXiv:2405.13698). Parameter groups with a
    learning rate of their own share this weight decay."""


def adam_step(p: Tensor, g: Tensor, state: State, c: Coefficients) -> None:
    """Update parameters in place with one step of Adam (Kingma & Ba 2015, arXiv:1412.6980).

    p, g, state["exp_avg"], state["exp_avg_sq"]: (K, n) each.
    """
    exp_avg = state["exp_avg"].lerp_(g, c["one_minus_beta1"])
    exp_avg_sq = state["exp_avg_sq"].lerp_(g * g, c["one_minus_beta2"])
    denominator = exp_avg_sq.sqrt().mul_(c["bias_correction2_rsqrt"]).add_(c["eps"])
    p.sub_((exp_avg / denominator).mul_(c["step_size"]))

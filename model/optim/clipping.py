"""Clipping rules, which bound the gradient or the update of each run. Tensors have a leading axis K, one row per run.

To add a clipping rule, write one class with a `name` and add it to the union `Clip` at the end of this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from model.optim.param_groups import ParamGroup
from model.section import Count, Decay, Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = (2 - 2**-23) * 2.0**127  # largest float32

Numbers = Mapping[str, Any]
"""Hyperparameters of a rule: (K, 1) tensors, or floats that all runs share."""

State = Mapping[str, "Tensor"]
"""State tensors by name, (K, width) each."""


class ClippingRule(Section):
    """A bound on gradients or on updates, and the state that the bound depends on."""

    bounds_updates: ClassVar[bool] = False
    """Whether the rule bounds updates instead of gradients."""

    def numbers(self) -> dict[str, float]:
        """Return the hyperparameters, with infinity for a bound that is None."""
        return {key: float("inf") if value is None else float(value) for key, value in self if key != "name"}

    def initial_state(self, n_tensors: int) -> dict[str, tuple[int, float]]:
        """Return name, width and initial value of each state tensor, for a run of `n_tensors` parameter tensors."""
        return {}

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, params: ParamGroup) -> Tensor | None:
        """Clip gradients in place. Return the clipped fraction of each run, (K,), or None if the rule never clips.

        g: gradients, (K, P). norms: L2 norms of the rows, (K,). params: all parameters.
        """
        return None

    def bound_update(self, p: Tensor, before: Tensor, c: Numbers, lr: Any, group: ParamGroup) -> Tensor:
        """Bound the update of a parameter group in place. Return which tensors were bounded, (K, tensors).

        p: parameters after the update, (K, n). before: parameters before the update, (K, n). lr: learning rate of the
        group, (K, 1).
        """
        raise AssertionError(f"{type(self).__name__} bounds no updates")


class NoClip(ClippingRule):
    """Do not clip."""

    name: Literal["none"] = "none"


class Norm(ClippingRule):
    """Scale the gradient of a run down to a maximum L2 norm (Pascanu et al. 2013, arXiv:1211.5063)."""

    name: Literal["norm"] = "norm"
    max_norm: Positive = 1.0
    """Maximum L2 norm over all gradients of a run."""

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, params: ParamGroup) -> Tensor | None:
        return _scale(g, norms[:, None], c["max_norm"]).float().squeeze(1)


class Value(ClippingRule):
    """Clip every element of the gradient to a maximum magnitude."""

    name: Literal["value"] = "value"
    max_value: Positive = 1.0
    """Maximum magnitude of one element of the gradient."""

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, params: ParamGroup) -> Tensor | None:
        import torch

        over = (g.abs() > c["max_value"]).any(dim=1)
        torch.minimum(g, torch.as_tensor(c["max_value"], device=g.device), out=g)
        torch.maximum(g, torch.as_tensor(-c["max_value"], device=g.device), out=g)
        return over.float()


class ZClip(ClippingRule):
    """Clip a gradient norm that is an outlier relative to the running mean and variance of the norms.

    If the z-score s of a norm exceeds `clip.z`, the gradient is scaled down to the norm
    mean + (clip.z^2 / s) x standard deviation. The mean and the variance are those before the update. The clipped norm
    then updates them.
    Source: Kumar et al. 2025, arXiv:2504.02507.
    """

    name: Literal["zclip"] = "zclip"
    z: Positive = 2.5
    """Maximum z-score of a gradient norm. Norms with a higher z-score are clipped."""
    alpha: Decay = 0.97
    """Decay per update of the running mean and variance of gradient norms."""
    warmup: Annotated[int, Field(ge=2)] = 25
    """Number of updates whose norms determine the initial mean and variance. During these updates, only `max_norm`
    clips."""
    max_norm: Positive | None = None
    """Additional maximum of the L2 norm, also applied during warmup. None: no additional maximum."""

    def initial_state(self, n_tensors: int) -> dict[str, tuple[int, float]]:
        return {"seen": (1, 0.0), "mean": (1, 0.0), "var": (1, 0.0)}

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, params: ParamGroup) -> Tensor | None:
        import torch

        norm, seen, mean, var = norms[:, None], state["seen"], state["mean"], state["var"]  # (K, 1) each
        sd, warm = var.sqrt(), seen >= c["warmup"]
        z = (norm - mean) / (sd + 1e-6)
        spikes = warm & (z > c["z"])
        clipped = torch.where(spikes, mean + c["z"] ** 2 / z * sd, norm)
        # Welford's running mean and variance during warmup: all norms have the same weight.
        rate = torch.where(warm, torch.as_tensor(1 - c["alpha"], device=g.device), 1 / (seen + 1))
        new_mean = mean + rate * (clipped - mean)
        square = torch.where(warm, (clipped - new_mean) ** 2, (clipped - mean) * (clipped - new_mean))
        new_var = var + rate * (square - var)
        usable = new_var.isfinite()  # a norm can overflow although no gradient does, and would stay in the mean
        var.copy_(new_var.where(usable, var))
        mean.copy_(new_mean.where(usable, mean))
        seen += usable
        limit = torch.where(spikes, clipped, torch.full_like(clipped, torch.inf))
        return _scale(g, norm, limit.clamp(max=torch.as_tensor(c["max_norm"], device=g.device))).float().squeeze(1)


class AdaGC(ClippingRule):
    """Clip each tensor's gradient at a multiple of the running mean of its own clipped norms.

    Source: Wang et al. 2025, arXiv:2502.11034. During warmup, the gradient of the run is clipped at an absolute norm,
    and the running means start at the smallest norms of the warmup.
    """

    name: Literal["adagc"] = "adagc"
    relative: Positive = 1.05
    """Maximum L2 norm of a tensor's gradient, in multiples of its running mean."""
    absolute: Positive = 1.0
    """Maximum L2 norm over all gradients of a run during warmup."""
    beta: Decay = 0.98
    """Decay per update of the running means."""
    warmup: Count = 100
    """Updates before the running means are used. Until then, only `absolute` clips."""

    def initial_state(self, n_tensors: int) -> dict[str, tuple[int, float]]:
        return {"seen": (1, 0.0), "gamma": (n_tensors, float("inf"))}

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, params: ParamGroup) -> Tensor | None:
        import torch

        seen, gamma = state["seen"], state["gamma"]  # (K, 1), (K, tensors)
        warm = seen >= c["warmup"]
        own = params.norms(g)
        limit = torch.where(warm, c["relative"] * gamma / own, c["absolute"] / norms[:, None])
        # A tensor without gradient has nothing to clip, and its norm must not become the running mean.
        factor = torch.where(own > 0, limit.clamp(max=1.0), torch.ones_like(own))
        clipped = factor * own
        averaged = gamma + (1 - c["beta"]) * (clipped - gamma)
        new_gamma = torch.where(warm & gamma.isfinite(), averaged, gamma.minimum(clipped))
        gamma.copy_(torch.where((own > 0) & own.isfinite(), new_gamma, gamma))
        seen += 1
        g.mul_(params.expand(factor))
        return (factor < 1).float().mean(dim=1)


class UpdateRMS(ClippingRule):
    """Bound the root mean square of each tensor's update, in units of its learning rate. Gradients are not clipped.

    Source: Shazeer & Stern 2018, arXiv:1804.04235, section 6, here for any optimizer. The update includes weight decay.
    """

    bounds_updates: ClassVar[bool] = True
    name: Literal["update-rms"] = "update-rms"
    max_rms: Positive = 1.0
    """Maximum root mean square of a tensor's update divided by its learning rate."""

    def bound_update(self, p: Tensor, before: Tensor, c: Numbers, lr: Any, group: ParamGroup) -> Tensor:
        step = p - before
        rms = group.means(step * step).sqrt() / lr  # (K, tensors)
        over = rms > c["max_rms"]
        factor = (c["max_rms"] / rms).where(over, rms.new_ones(()))
        # Tensors within the bound are not written, because before + (p - before) can differ from p in the last bit.
        p.copy_((before + step * group.expand(factor)).where(group.expand(over), p))
        return over


def _scale(g: Tensor, norms: Tensor, limits: Any) -> Tensor:
    """Scale rows in place down to their limits. Return which rows exceeded them, (K, 1). norms: (K, 1)."""
    # 1e-6 as in torch.nn.utils.clip_grad_norm_, so that the two agree to the last bits. A norm can overflow although no
    # gradient does. Without the clamp, an infinite limit would then make the gradients nan.
    finite = norms.clamp(max=LARGEST)
    g.mul_((limits / (finite + 1e-6)).clamp(max=1.0))
    return norms > limits


Clip = Annotated[Norm | NoClip | Value | ZClip | AdaGC | UpdateRMS, Field(discriminator="name")]

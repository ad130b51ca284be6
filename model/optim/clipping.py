"""Clipping rules: what a gradient may do to one update. Every tensor has a leading axis K, one slice per run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from model.optim.param_groups import ParamGroup
from model.section import Count, Decay, Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = (2 - 2**-23) * 2.0**127  # float32

Numbers = Mapping[str, Any]
"""A rule's hyperparameters: floats where K = 1, (K, 1) tensors otherwise."""

State = Mapping[str, "Tensor"]


class Rule(Section):
    """A bound on gradients or updates, with what it remembers of earlier ones."""

    bounds: ClassVar[bool] = False
    """Whether it bounds updates instead of gradients."""

    def numbers(self) -> dict[str, float]:
        """Return the hyperparameters, infinity for a bound that is not asked for."""
        return {key: float("inf") if value is None else float(value) for key, value in self if key != "name"}

    def state(self, tensors: int) -> dict[str, tuple[int, float]]:
        """Return name, width and first value of what is remembered for a run of so many parameter tensors."""
        return {}

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, whole: ParamGroup) -> Tensor | None:
        """Bound gradients in place; return the share of each run that was clipped, (K,), none where none ever is.

        g: (K, P), all gradients of a run in one row. norms: (K,), of the rows.
        """
        return None

    def bound(self, p: Tensor, before: Tensor, c: Numbers, rate: Any, part: ParamGroup) -> Tensor:
        """Bound the update of a part in place; return which tensors were, (K, tensors).

        p, before: (K, n), after and before it. rate: learning rate of the part.
        """
        raise AssertionError(f"{type(self).__name__} bounds no updates")


class NoClip(Rule):
    """Take gradients as they come."""

    name: Literal["none"] = "none"


class Norm(Rule):
    """Scale the whole gradient down to a largest L2 norm (Pascanu et al. 2013, arXiv:1211.5063)."""

    name: Literal["norm"] = "norm"
    max_norm: Positive = 1.0
    """Largest L2 norm of all gradients of a run together."""

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, whole: ParamGroup) -> Tensor | None:
        return _scale(g, norms[:, None], c["max_norm"]).float().squeeze(1)


class Value(Rule):
    """Cut every element of the gradient off at a largest magnitude."""

    name: Literal["value"] = "value"
    max_value: Positive = 1.0
    """Largest magnitude of an element."""

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, whole: ParamGroup) -> Tensor | None:
        import torch

        over = (g.abs() > c["max_value"]).any(dim=1)
        torch.minimum(g, torch.as_tensor(c["max_value"], device=g.device), out=g)
        torch.maximum(g, torch.as_tensor(-c["max_value"], device=g.device), out=g)
        return over.float()


class ZClip(Rule):
    """Clip norms that stand out from their own running mean and variance.

    Source: Kumar et al. 2025, arXiv:2504.02507. A norm whose z-score exceeds the threshold is brought to
    mean + threshold^2 / z standard deviations; the statistics are those before it, and learn the clipped norm.
    """

    name: Literal["zclip"] = "zclip"
    z: Positive = 2.5
    """Largest z-score of a norm that is left alone."""
    alpha: Decay = 0.97
    """Decay of the mean and variance of norms."""
    warmup: Annotated[int, Field(ge=2)] = 25
    """Updates whose norms make the first mean and variance; a run of no more is not clipped for its z-scores."""
    max_norm: Positive | None = None
    """Largest L2 norm besides, during warmup too; none: no such bound."""

    def state(self, tensors: int) -> dict[str, tuple[int, float]]:
        return {"seen": (1, 0.0), "mean": (1, 0.0), "var": (1, 0.0)}

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, whole: ParamGroup) -> Tensor | None:
        import torch

        norm, (seen, mean, var) = norms[:, None], (state["seen"], state["mean"], state["var"])  # (K, 1) each
        sd, warm = var.sqrt(), seen >= c["warmup"]
        z = (norm - mean) / (sd + 1e-6)
        spikes = warm & (z > c["z"])
        kept = torch.where(spikes, mean + c["z"] ** 2 / z * sd, norm)
        # Welford's running mean and variance while warming up: each norm has the same weight.
        rate = torch.where(warm, torch.as_tensor(1 - c["alpha"], device=g.device), 1 / (seen + 1))
        moved = mean + rate * (kept - mean)
        spread = torch.where(warm, (kept - moved) ** 2, (kept - mean) * (kept - moved))
        learnt = var + rate * (spread - var)
        usable = learnt.isfinite()  # a norm may overflow where no gradient does, and would be remembered for ever
        var.copy_(learnt.where(usable, var))
        mean.copy_(moved.where(usable, mean))
        seen += usable
        limit = torch.where(spikes, kept, torch.full_like(kept, torch.inf))
        return _scale(g, norm, limit.clamp(max=torch.as_tensor(c["max_norm"], device=g.device))).float().squeeze(1)


class AdaGC(Rule):
    """Clip each tensor's gradient at a multiple of the running mean of its own clipped norms.

    Source: Wang et al. 2025, arXiv:2502.11034. Before there is a mean, the whole gradient is clipped at an absolute
    norm, and the smallest norms seen are where the means start.
    """

    name: Literal["adagc"] = "adagc"
    relative: Positive = 1.05
    """Largest norm of a tensor's gradient, in multiples of its running mean."""
    absolute: Positive = 1.0
    """Largest L2 norm of the whole gradient during warmup."""
    beta: Decay = 0.98
    """Decay of the running means."""
    warmup: Count = 100
    """Updates before the running means are used; a run of no more is clipped at `absolute` alone."""

    def state(self, tensors: int) -> dict[str, tuple[int, float]]:
        return {"seen": (1, 0.0), "gamma": (tensors, float("inf"))}

    def clip(self, g: Tensor, norms: Tensor, state: State, c: Numbers, whole: ParamGroup) -> Tensor | None:
        import torch

        seen, gamma = state["seen"], state["gamma"]  # (K, 1), (K, tensors)
        warm = seen >= c["warmup"]
        own = whole.norms(g)
        at_most = torch.where(warm, c["relative"] * gamma / own, c["absolute"] / norms[:, None])
        # A tensor without gradient has nothing to clip and says nothing of its usual norm.
        factor = torch.where(own > 0, at_most.clamp(max=1.0), torch.ones_like(own))
        kept = factor * own
        learnt = torch.where(warm & gamma.isfinite(), gamma + (1 - c["beta"]) * (kept - gamma), gamma.minimum(kept))
        gamma.copy_(torch.where((own > 0) & own.isfinite(), learnt, gamma))
        seen += 1
        g.mul_(whole.spread(factor))
        return (factor < 1).float().mean(dim=1)


class UpdateRMS(Rule):
    """Bound the root mean square of each tensor's update in units of its rate; gradients are left alone.

    Source: Shazeer & Stern 2018, arXiv:1804.04235, section 6, for any optimizer; weight decay is part of the update.
    """

    bounds: ClassVar[bool] = True
    name: Literal["update-rms"] = "update-rms"
    max_rms: Positive = 1.0
    """Largest root mean square of a tensor's update over its learning rate."""

    def bound(self, p: Tensor, before: Tensor, c: Numbers, rate: Any, part: ParamGroup) -> Tensor:
        step = p - before
        rms = part.mean(step * step).sqrt() / rate  # (K, tensors)
        over = rms > c["max_rms"]
        factor = (c["max_rms"] / rms).where(over, rms.new_ones(()))
        # What is within bounds keeps its bits: before + (p - before) may differ from p in the last.
        p.copy_((before + step * part.spread(factor)).where(part.spread(over), p))
        return over


def _scale(g: Tensor, norms: Tensor, limits: Any) -> Tensor:
    """Scale rows in place to their limits; return which were too long, (K, 1). norms: (K, 1)."""
    # 1e-6 as in torch.nn.utils.clip_grad_norm_, so that the two agree to the last bits. A norm may overflow where no
    # gradient does; without the clamp an infinite limit would then make them nan.
    finite = norms.clamp(max=LARGEST)
    g.mul_((limits / (finite + 1e-6)).clamp(max=1.0))
    return norms > limits


Clip = Annotated[Norm | NoClip | Value | ZClip | AdaGC | UpdateRMS, Field(discriminator="name")]

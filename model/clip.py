"""Clipping rules: what a gradient may do to one update. Every tensor has a leading axis K, one slice per run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from model.section import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = (2 - 2**-23) * 2.0**127  # float32


class NoClip(Section):
    """Take gradients as they come."""

    name: Literal["none"] = "none"

    def limit(self) -> float:
        return float("inf")


class Norm(Section):
    """Scale the whole gradient down to a largest L2 norm (Pascanu et al. 2013, arXiv:1211.5063)."""

    name: Literal["norm"] = "norm"
    max_norm: Positive = 1.0
    """Largest L2 norm of all gradients of a run together."""

    def limit(self) -> float:
        return self.max_norm


def clip(grad: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Scale gradients in place to their limits; return the norms before and whether each was clipped.

    grad: (K, P), all gradients of a run in one row. limits: (K,), inf where nothing is clipped.
    """
    norms = grad.norm(dim=1)  # (K,)
    # 1e-6 as in torch.nn.utils.clip_grad_norm_, so that the two agree to the last bits. A norm may overflow where no
    # gradient does; without the clamp an infinite limit would then make them nan.
    finite = norms.clamp(max=LARGEST)
    grad.mul_((limits / (finite + 1e-6)).clamp(max=1.0).unsqueeze(1))
    return norms, norms > limits


Clip = Annotated[Norm | NoClip, Field(discriminator="name")]

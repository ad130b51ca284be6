"""Muon, which updates matrices with an orthogonalized momentum and all other parameters with AdamW."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from model.optim.optimizer import Coefficients, DecayHorizon, Moments, Number, Numbers, State, adam_step
from model.optim.param_groups import GROUP_NAMES, GroupName, ParamGroup, ParamSlice
from model.section import Decay, Positive

if TYPE_CHECKING:
    from torch import Tensor

# Coefficients of the quintic that maps the singular values of a matrix of norm 1 to between 0.7 and 1.2 (Jordan 2024).
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(Moments, DecayHorizon):
    """Update each matrix by the orthogonal matrix nearest to its momentum (Jordan et al. 2024).

    Source: https://kellerjordan.github.io/posts/muon. AdamW updates embeddings, head and scalars. Queries, keys,
    values and each expert are separate matrices. The update has unit scale, so clipping a gradient's norm does not
    bound it.
    """

    has_parametrizations: ClassVar[bool] = True
    forms: ClassVar[Mapping[str, str]] = {
        **Moments.forms,
        **DecayHorizon.forms,
        "momentum": "momentum_half_life",
    }

    name: Literal["muon"] = "muon"
    lr: Positive = 0.02
    """Peak learning rate of matrices: spectral norm of one update. The schedule multiplies it."""
    momentum: Decay | None = 0.95
    """Decay per update of the running mean of gradients of matrices. None: from momentum_half_life."""
    momentum_half_life: Positive | None = None
    """Half-life in tokens of the running mean of gradients of matrices, in place of momentum, which is 0.5^(tokens of
    an update / half-life)."""
    nesterov: bool = True
    """Use Nesterov momentum for matrices."""
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Number of Newton-Schulz iterations per update."""
    adam_lr: Positive = 1e-3
    """Peak learning rate of embeddings, head and scalars, unless the group has its own."""
    embedding_lr: Positive | None = None
    """Peak learning rate of token and position embeddings. None: same as adam_lr."""
    head_lr: Positive | None = None
    """Peak learning rate of an untied head. None: same as adam_lr."""
    scalar_lr: Positive | None = None
    """Peak learning rate of gains, biases, skip weights and routers. None: same as adam_lr."""

    def rescaled(self, hidden_lr: float, hidden_decay: float, eps: float) -> Self:
        # The spectral norm of an orthogonal update does not grow with the size of the matrix.
        return self.model_copy(update={"eps": self.eps * eps})

    def rate(self, group: GroupName) -> float:
        if group == "matrix":
            return self.lr
        own: float | None = getattr(self, f"{group}_lr")
        return self.adam_lr if own is None else own

    def state_groups(self) -> dict[str, tuple[GroupName, ...]]:
        adam_groups = GROUP_NAMES[1:]
        return {"momentum_buffer": ("matrix",), "exp_avg": adam_groups, "exp_avg_sq": adam_groups}

    def coefficients(self, group: GroupName, lr: Number, step: Number, beta1: Number | None = None) -> Numbers:
        decay = {"decay": lr * self.decay(group)}
        if group == "matrix":
            return {"lr": lr, "momentum": self.momentum} | decay
        return self.moments(lr, step, beta1) | decay

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, group: ParamGroup) -> None:
        p.mul_(1 - c["decay"])
        if group.name != "matrix":
            adam_step(p, g, state, c)
            return
        buffer = state["momentum_buffer"].lerp_(g, 1 - c["momentum"])
        step = g.lerp(buffer, c["momentum"]) if self.nesterov else buffer
        for slices in _by_shape(group).values():
            self._orthogonal_step(p, step, c["lr"], slices)

    def _orthogonal_step(self, p: Tensor, step: Tensor, lr: float | Tensor, slices: list[ParamSlice]) -> None:
        """Update matrices of one shape, or its transpose, in one batch over matrices and runs."""
        import torch

        K = len(p)
        steps = [_matrices(step, param) for param in slices]
        wide = torch.cat([x.mT if param.rows > param.cols else x for x, param in zip(steps, slices, strict=True)], 1)
        orthogonal = orthogonalize(wide, self.ns_steps)  # (K, N, shorter side, longer side)
        for x, param in zip(orthogonal.split([param.n for param in slices], 1), slices, strict=True):
            x = x.mT if param.rows > param.cols else x
            scale = math.sqrt(max(1.0, param.rows / param.cols))
            p[:, param.start : param.stop] -= x.reshape(K, -1) * (lr * scale)


def orthogonalize(x: Tensor, n_steps: int) -> Tensor:
    """Return matrices with the singular vectors of x and singular values near 1, by Newton-Schulz iteration.

    x: (..., rows, cols) with rows <= cols, which makes the products as small as possible.
    """
    import torch

    dtype = x.dtype
    x = x.to(torch.bfloat16) if x.device.type == "cuda" else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(n_steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.to(dtype)


def _matrices(row: Tensor, param: ParamSlice) -> Tensor:
    return row[:, param.start : param.stop].reshape(len(row), param.n, param.rows, param.cols)


def _by_shape(group: ParamGroup) -> dict[tuple[int, int], list[ParamSlice]]:
    """Return the matrices of a group by their shorter and longer side."""
    slices = defaultdict(list)
    for param in group.slices:
        slices[min(param.rows, param.cols), max(param.rows, param.cols)].append(param)
    return slices

"""Muon: momentum, orthogonalised; for matrices alone, everything else is left to AdamW."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from model.optim.optimizer import Coefficients, Moments, State, adam
from model.optim.param_groups import GROUPS, Group, ParamGroup, ParamSlice
from model.section import Decay, Positive

if TYPE_CHECKING:
    from torch import Tensor

# Coefficients of the quintic that lifts the singular values of a matrix of norm 1 to between 0.7 and 1.2 (Jordan 2024).
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(Moments):
    """Momentum whose every matrix is replaced by the nearest orthogonal one (Jordan et al. 2024).

    Source: https://kellerjordan.github.io/posts/muon. Embeddings, head and scalars are AdamW's. Queries, keys and
    values, and each expert, are matrices of their own. Clipping a gradient's norm does not bound the step, which
    has no scale.
    """

    name: Literal["muon"] = "muon"
    lr: Positive = 0.02
    """Peak rate of matrices, in units of the spectral norm of a step."""
    momentum: Decay = 0.95
    """Decay of the mean of gradients of matrices."""
    nesterov: bool = True
    """Look ahead by one momentum step."""
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations."""
    adam_lr: Positive = 1e-3
    """Peak rate of embeddings, head and scalars, each of which may have its own."""
    embedding_lr: Positive | None = None
    """Peak rate of token and position embeddings; none: adam_lr."""
    head_lr: Positive | None = None
    """Peak rate of an untied head; none: adam_lr."""
    scalar_lr: Positive | None = None
    """Peak rate of gains, biases, skip weights and routers; none: adam_lr."""

    def rate(self, group: Group) -> float:
        if group == "matrix":
            return self.lr
        own: float | None = getattr(self, f"{group}_lr")
        return self.adam_lr if own is None else own

    def state(self) -> dict[str, tuple[Group, ...]]:
        return {"m": GROUPS, "v": GROUPS[1:]}

    def coefficients(self, group: Group, lr: float, step: int, beta1: float | None = None) -> dict[str, float]:
        decay = {"decay": lr * self.decay(group)}
        if group == "matrix":
            return {"lr": lr, "momentum": self.momentum} | decay
        return self.moments(lr, step, beta1) | decay

    def update(self, p: Tensor, g: Tensor, state: State, c: Coefficients, part: ParamGroup) -> None:
        p.mul_(1 - c["decay"])
        if part.group != "matrix":
            adam(p, g, state, c)
            return
        m = state["m"].lerp_(g, 1 - c["momentum"])
        step = g.lerp(m, c["momentum"]) if self.nesterov else m
        for pieces in _of_equal_shape(part).values():
            self._orthogonal_step(p, step, c["lr"], pieces)

    def _orthogonal_step(self, p: Tensor, step: Tensor, lr: float | Tensor, pieces: list[ParamSlice]) -> None:
        """Move matrices that have one shape, lying or standing, in one batch over matrices and runs."""
        import torch

        K = len(p)
        lying = [_matrices(step, piece) for piece in pieces]
        wide = torch.cat([x.mT if piece.rows > piece.cols else x for x, piece in zip(lying, pieces, strict=True)], 1)
        found = orthogonal(wide, self.ns_steps)  # (K, N, least, most)
        for x, piece in zip(found.split([piece.n for piece in pieces], 1), pieces, strict=True):
            x = x.mT if piece.rows > piece.cols else x
            scale = math.sqrt(max(1.0, piece.rows / piece.cols))
            p[:, piece.start : piece.stop] -= x.reshape(K, -1) * (lr * scale)


def orthogonal(x: Tensor, steps: int) -> Tensor:
    """Return matrices with the singular vectors of x and singular values near 1, by Newton-Schulz iteration.

    x: (..., rows, cols), rows <= cols, so that the products are as small as can be.
    """
    import torch

    dtype = x.dtype
    x = x.to(torch.bfloat16) if x.device.type == "cuda" else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.to(dtype)


def _matrices(row: Tensor, piece: ParamSlice) -> Tensor:
    return row[:, piece.start : piece.stop].reshape(len(row), piece.n, piece.rows, piece.cols)


def _of_equal_shape(part: ParamGroup) -> dict[tuple[int, int], list[ParamSlice]]:
    found = defaultdict(list)
    for piece in part.pieces:
        found[min(piece.rows, piece.cols), max(piece.rows, piece.cols)].append(piece)
    return found

"""Where each parameter lies in the row of a run, and which of them share a learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import prod
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

Group = Literal["matrix", "embedding", "head", "scalar"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""In the order in which they lie in a row. scalar: gains, biases, skip weights and routers."""


@dataclass(frozen=True)
class ParamSlice:
    """One parameter: `n` matrices of (rows, cols), or a vector where rows is 1."""

    name: str
    start: int
    """Within its part."""
    stop: int
    n: int
    rows: int
    cols: int


@dataclass(frozen=True)
class ParamGroup:
    """A stretch of a row whose parameters share a rate."""

    group: Group
    depth: int
    """Blocks above it: n_layer at the embeddings, 0 in the last block and at the head."""
    start: int
    stop: int
    pieces: tuple[ParamSlice, ...]

    def of(self, block: Tensor, offset: int = 0) -> Tensor:
        """Return these columns of a (K, P) block, whose first column is number `offset` of the row."""
        return block[:, self.start - offset : self.stop - offset]

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of each piece, (K, pieces). x: (K, n), this part's columns."""
        import torch

        return torch.stack([part.mean(dim=1) for part in x.split(self._sizes(), dim=1)], dim=1)

    def norms(self, x: Tensor) -> Tensor:
        """Return the L2 norm of each piece, (K, pieces). x: (K, n), this part's columns."""
        import torch

        return torch.stack([part.norm(dim=1) for part in x.split(self._sizes(), dim=1)], dim=1)

    def spread(self, x: Tensor) -> Tensor:
        """Return one number of each piece on all its columns, (K, n). x: (K, pieces)."""
        import torch

        return x.repeat_interleave(torch.tensor(self._sizes(), device=x.device), dim=1)

    def _sizes(self) -> list[int]:
        return [piece.stop - piece.start for piece in self.pieces]


def group_of(name: str, shape: Sequence[int]) -> Group:
    """Return the group of a parameter of the network by its name and shape."""
    if name.startswith(("wte.", "wpe.")):
        return "embedding"
    if name.startswith("head."):
        return "head"
    return "scalar" if len(shape) < 2 or ".router." in name else "matrix"


def parts(shapes: Mapping[str, Sequence[int]], n_layer: int, by_depth: bool) -> list[ParamGroup]:
    """Lay the parameters out in a row, group after group.

    by_depth: one part a layer, for rates that differ from layer to layer.
    """

    def place(name: str) -> tuple[int, int]:
        group = group_of(name, shapes[name])
        return GROUPS.index(group), -_depth(name, group, n_layer) if by_depth else 0

    found, start = [], 0
    for (group, depth), names in groupby(sorted(shapes, key=place), key=place):
        pieces = _pieces({name: shapes[name] for name in names})
        found.append(ParamGroup(GROUPS[group], -depth, start, start + pieces[-1].stop, pieces))
        start = found[-1].stop
    return found


def whole(parts: Sequence[ParamGroup]) -> ParamGroup:
    """Return one part of all pieces, for what looks at a whole row tensor by tensor."""
    pieces = tuple(
        ParamSlice(piece.name, part.start + piece.start, part.start + piece.stop, piece.n, piece.rows, piece.cols)
        for part in parts
        for piece in part.pieces
    )
    return ParamGroup("matrix", 0, 0, parts[-1].stop, pieces)


def _depth(name: str, group: Group, n_layer: int) -> int:
    if group == "embedding" or name.startswith("embedding_"):  # its projection and its norm
        return n_layer
    path = name.split(".")
    return n_layer - 1 - int(path[1]) if path[0] == "blocks" else 0


def _pieces(shapes: Mapping[str, Sequence[int]]) -> tuple[ParamSlice, ...]:
    ends = list(accumulate(prod(shape) for shape in shapes.values()))
    starts = [0, *ends[:-1]]
    return tuple(
        ParamSlice(name, start, end, *_matrices(name, shape))
        for (name, shape), start, end in zip(shapes.items(), starts, ends, strict=True)
    )


def _matrices(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return how many matrices of how many rows and columns a parameter is."""
    if len(shape) == 3:  # experts
        return shape[0], shape[1], shape[2]
    if name.endswith("qkv.weight"):  # queries, keys and values are three maps that share one parameter for speed
        return 3, shape[0] // 3, shape[1]
    return 1, prod(shape[:-1]), shape[-1]

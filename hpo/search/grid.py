"""All combinations of the values of a space, which are numbered but never stored as a list."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from pydantic import BaseModel

from hpo.search.ranges import Choices, Entry, Space
from hpo.search.space import applies, components_first, field_type
from model.section import updated

Axis = Callable[[Entry, type], Sequence[Any]]


@dataclass(frozen=True)
class GridCombinations(Sequence[dict[str, Any]]):
    """A sequence of combinations that computes each combination from its index.

    blocks: one mapping of values by path for each set of components, because the components decide which fields exist.
    """

    blocks: tuple[dict[str, Sequence[Any]], ...]

    def __len__(self) -> int:
        return sum(_size(block) for block in self.blocks)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        numbers = range(len(self))[index]  # raises IndexError past the end, and counts from the end for -1
        return self._at(numbers) if isinstance(numbers, int) else [self._at(i) for i in numbers]

    def _at(self, number: int) -> dict[str, Any]:
        for block in self.blocks:
            if number < _size(block):
                return _combination(block, number)
            number -= _size(block)
        raise AssertionError(number)


def _size(block: dict[str, Sequence[Any]]) -> int:
    return math.prod(len(axis) for axis in block.values())


def _combination(block: dict[str, Sequence[Any]], number: int) -> dict[str, Any]:
    """Return the combination with a number: its digits in the mixed base of the axes, the last axis fastest."""
    values = {}
    for path, axis in reversed(block.items()):
        number, digit = divmod(number, len(axis))
        values[path] = axis[digit]
    return dict(reversed(values.items()))


def build_grid(base: BaseModel, space: Space, axis: Axis) -> GridCombinations:
    """Return the combinations of a space.

    axis: function that returns the values of a range for the type of its field.
    """
    names = {
        path: entry.choices for path, entry in space.items() if isinstance(entry, Choices) and path.endswith(".name")
    }
    blocks = []
    for combination in itertools.product(*names.values()):
        chosen = dict(zip(names, combination, strict=True))
        config = updated(base, chosen)
        rest = [path for path in components_first(space) if path not in names and applies(config, path)]
        block = {path: (value,) for path, value in chosen.items()}
        blocks.append(block | {path: axis(space[path], field_type(config, path)) for path in rest})
    return GridCombinations(tuple(blocks))

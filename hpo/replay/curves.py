"""Recorded learning curves, and where their configurations lie in the search space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel, create_model

from hpo.search.direction import Direction
from hpo.search.ranges import Choices, Entry, Space
from hpo.search.scale import unit_position
from model.section import Section

Array = np.ndarray
TOP = 0.1  # share of the configurations that count as the best


@dataclass(frozen=True)
class Curves:
    """Learning curves of N runs of C configurations at R rungs, as losses.

    base: a configuration with the fields of the space. params: values of each configuration. config: index of the
    configuration of each run, (N,). values: losses, (N, R); inf where a run diverged, NaN after the end of a run.
    rung_tokens: tokens between two rungs. fixed: whether a run may not be pruned, (N,).
    omitted: number of recorded runs that are left out, by reason.
    """

    name: str
    space: Space
    base: BaseModel
    params: Sequence[Mapping[str, Any]]
    config: Array
    values: Array
    rung_tokens: float = 1.0
    direction: Direction = Direction.MINIMIZE
    fixed: Array | None = None
    omitted: Mapping[str, int] = field(default_factory=dict)

    @property
    def rungs(self) -> int:
        return int(self.values.shape[1])

    @cached_property
    def known(self) -> Array:
        """Whether the end of each run is known: it reached the last rung or diverged, (N,)."""
        return np.isfinite(self.values[:, -1]) | np.isinf(self.values).any(axis=1)

    @cached_property
    def finals(self) -> Array:
        """The loss of each run at the last rung: inf if it diverged, NaN if it is not known, (N,)."""
        return np.where(np.isinf(self.values).any(axis=1), np.inf, self.values[:, -1])

    @cached_property
    def truth(self) -> Array:
        """The mean loss of each configuration at the last rung over its known runs, (C,)."""
        known = [self.finals[(self.config == c) & self.known] for c in range(len(self.params))]
        return np.array([runs.mean() if len(runs) else np.nan for runs in known])

    @cached_property
    def top(self) -> float:
        """The largest loss of a configuration that belongs to the best tenth."""
        known = np.sort(self.truth[~np.isnan(self.truth)])
        return float(known[max(1, round(TOP * len(known))) - 1]) if len(known) else np.nan

    @cached_property
    def units(self) -> Array:
        """The positions of the configurations in the space, (C, D)."""
        return np.array([unit_positions(self.space, params) for params in self.params]).reshape(len(self.params), -1)

    def seed_residuals(self) -> tuple[Array, Array]:
        """Return the deviations of runs from the mean curve of their configuration, scaled to the spread of one run.

        Only configurations with several known runs have them. Also return the mean final loss of each configuration:
        runs that barely learn differ more, or less, than good ones. (M, R) and (M,), M may be 0.
        """
        rows, losses = [], []
        for c in np.flatnonzero(np.isfinite(self.truth)):
            runs = self.values[(self.config == c) & self.known]
            if len(runs) > 1:
                rows.append((runs - runs.mean(axis=0)) * np.sqrt(len(runs) / (len(runs) - 1)))
                losses += [self.truth[c]] * len(runs)
        return (np.concatenate(rows) if rows else np.empty((0, self.rungs))), np.array(losses)


def unit_positions(space: Space, params: Mapping[str, Any]) -> list[float]:
    """Return the position of a configuration on each axis of the space, in [0, 1].

    A field that the configuration does not have, because it belongs to another component, is in the middle.
    """
    return [_unit(entry, params[path]) if path in params else 0.5 for path, entry in space.items()]


def _unit(entry: Entry, value: Any) -> float:
    if isinstance(entry, Choices):
        # A baseline may have a value that is no choice.
        return entry.choices.index(value) / max(1, len(entry.choices) - 1) if value in entry.choices else 0.5
    return unit_position(value, entry.low, entry.high, log=entry.log, complement_log=entry.complement_log)


def features(space: Space, units: Array) -> Array:
    """Return coordinates in which distances are comparable: choices that are not numbers differ by 1 from each other.

    units: (N, D); returns (N, F).
    """
    columns = []
    for axis, entry in enumerate(space.values()):
        if isinstance(entry, Choices) and not all(isinstance(c, int | float) for c in entry.choices):
            chosen = np.rint(units[:, axis] * max(1, len(entry.choices) - 1)).astype(int)
            columns += list(np.eye(len(entry.choices))[chosen].T / np.sqrt(2))
        elif isinstance(entry, Choices):
            steps = max(1, len(entry.choices) - 1)
            columns.append(np.rint(units[:, axis] * steps) / steps)
        else:
            columns.append(units[:, axis])
    return np.array(columns).T.reshape(len(units), -1)


def base_of_space(space: Space) -> BaseModel:
    """Return a configuration with the fields of a space, for curves whose training code is not known."""
    tree: dict[str, Any] = {}
    for path, entry in space.items():
        *parents, leaf = path.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = _field(entry)
    return _section("Recorded", tree)()


def _field(entry: Entry) -> tuple[Any, Any]:
    if isinstance(entry, Choices):
        kinds = {type(choice) for choice in entry.choices}
        return (kinds.pop() if len(kinds) == 1 else Any, entry.choices[0])
    whole = isinstance(entry.low, int) and isinstance(entry.high, int)
    return (int, entry.low) if whole else (float, float(entry.low))


def _section(name: str, tree: Mapping[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for key, node in tree.items():
        if isinstance(node, Mapping):
            kind = _section(key.title(), node)
            fields[key] = (kind, kind())
        else:
            fields[key] = node
    return create_model(name, __base__=Section, **fields)

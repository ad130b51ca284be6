"""Recorded curves that a formula gives, and searches on them."""

from typing import Any

import numpy as np
from pydantic import TypeAdapter

from hpo.replay.curves import Curves, base_of_space
from hpo.replay.simulation import Search
from hpo.search.pruners import Pruner
from hpo.search.ranges import Space
from hpo.search.samplers import Sampler

SPACE = TypeAdapter(Space).validate_python({"lr": {"low": 0.0, "high": 1.0}, "kind": {"choices": ["a", "b"]}})


def crossing_curves(n: int = 60, rungs: int = 6, seed: int = 0, **fields: Any) -> Curves:
    """Return curves that cross: the final loss depends on both fields, early ones also on noise."""
    rng = np.random.default_rng(seed)
    params = [{"lr": float(rng.random()), "kind": str(rng.choice(["a", "b"]))} for _ in range(n)]
    finals = np.array([(p["lr"] - 0.3) ** 2 + 0.1 * (p["kind"] == "b") for p in params])
    fractions = np.arange(1, rungs + 1) / rungs
    values = finals[:, None] + (1 - fractions) * (1 + 0.5 * rng.normal(size=(n, 1)))
    return Curves("made up", SPACE, base_of_space(SPACE), params, np.arange(n), values, **fields)


def search(pruner: dict[str, Any], sampler: dict[str, Any] | None = None, **limits: Any) -> Search:
    chosen = None if sampler is None else TypeAdapter(Sampler).validate_python(sampler)
    return Search(chosen, TypeAdapter(Pruner).validate_python(pruner), **limits)

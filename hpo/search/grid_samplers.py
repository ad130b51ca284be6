"""Samplers that try given combinations of values, each exactly once."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from hpo.config.validation import error_messages
from hpo.search.grid import build_grid
from hpo.search.ranges import Entry, Space, discrete_values, spaced_values
from hpo.search.sampler_config import Combinations, SamplerConfig
from hpo.search.space import configs_with_field, field_type
from model.section import updated


class Grid(SamplerConfig):
    """Grid search: every combination of evenly spaced values, each exactly once."""

    name: Literal["grid"] = "grid"
    points: Annotated[int, Field(ge=2)] = 5
    """Number of values of each range, both ends included, evenly spaced on the scale of the range. A discrete range
    with fewer values uses them all."""

    def combinations(self, base: BaseModel, space: Space) -> Combinations:
        return build_grid(base, space, lambda entry, kind: spaced_values(entry, self.points, kind))

    def problems(self, base: BaseModel, space: Space) -> list[str]:
        return _unused_priors(self, space)


class BruteForce(SamplerConfig):
    """Every combination of a discrete space, each exactly once."""

    name: Literal["brute-force"] = "brute-force"

    def combinations(self, base: BaseModel, space: Space) -> Combinations:
        return build_grid(base, space, _all)

    def problems(self, base: BaseModel, space: Space) -> list[str]:
        return _unused_priors(self, space) + [
            f"space.{path}: must be choices or have a step, because sampler brute-force tries every value"
            for path, entry in space.items()
            if any(
                discrete_values(entry, field_type(config, path)) is None
                for config in configs_with_field(base, space, path)
            )
        ]


class Listed(SamplerConfig):
    """The given configurations in their order, each exactly once, as `hpo transfer` plans them."""

    name: Literal["list"] = "list"
    values: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    """The configurations: a list of mappings from dotted field to value. They may set fields outside the space."""

    def combinations(self, base: BaseModel, space: Space) -> Combinations:
        return self.values

    def problems(self, base: BaseModel, space: Space) -> list[str]:
        problems = _unused_priors(self, space)
        for i, values in enumerate(self.values):
            try:
                updated(base, values)
            except ValidationError as error:
                problems += error_messages(error, type(base), f"sampler.values.{i}")
        return problems


def _unused_priors(sampler: SamplerConfig, space: Space) -> list[str]:
    return [
        f"space.{path}.prior: must be omitted with sampler {sampler.name}, whose points are given in advance"
        for path, entry in space.items()
        if entry.prior is not None
    ]


def _all(entry: Entry, kind: type) -> Sequence[Any]:
    points = discrete_values(entry, kind)
    assert points is not None, "problems() reports continuous ranges"
    return points

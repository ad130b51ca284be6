"""The key `probe` of a study file: cool-down probes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from hpo.search.probes import SHARE
from model.section import Count, Section


class Probes(Section):
    """The rungs at which each run is probed, and the length of a probe."""

    rungs: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Rungs at which runs are probed. The pruner compares the probes of these rungs, and prunes at no other rung."""
    share: Annotated[float, Field(gt=0, lt=1)] = SHARE
    """Length of a probe as a fraction of the tokens of a run, in which the learning rate falls linearly to its value at
    the end of the schedule."""


def _kind(value: Any) -> str:
    return "probe" if isinstance(value, Mapping | Probes) else "word"


Word = Annotated[Literal["auto", "off"], Tag("word")]
Probe = Annotated[Word | Annotated[Probes, Tag("probe")], Discriminator(_kind)]

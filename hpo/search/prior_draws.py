"""Draw the values of a trial that follows the priors of a space."""

import random
from typing import Any

from optuna.distributions import BaseDistribution, IntDistribution

from hpo.search.prior import SPREAD, quantile, share
from hpo.search.ranges import Choices, Space, nearest_value, value_at
from hpo.search.scale import unit_position


class PriorDraws:
    """The priors of a space, as one trial follows them.

    A trial draws one number for all fields: it follows every prior whose share is larger. A field with a weak prior
    therefore follows it only in trials in which the fields with a strong prior do so too, and a trial without any prior
    leaves all fields to the sampler.
    """

    def __init__(self, space: Space, seed: int) -> None:
        """Keep the priors of a space. seed: of the trial; equal seeds give equal draws, in any order."""
        self._entries = {name: entry for name, entry in space.items() if entry.prior is not None}
        self._seed = seed

    def followed(self, number: int) -> list[str]:
        """Return the fields whose priors the trial with this number follows."""
        coin = self._random("").random()
        priors = {name: entry.prior for name, entry in self._entries.items()}
        return [name for name, prior in priors.items() if prior and coin < share(prior.trust, number)]

    def draw(self, number: int, kinds: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Return a value for each of these fields whose prior the trial with this number follows."""
        return {name: self._drawn(name, kinds[name]) for name in self.followed(number) if name in kinds}

    def _drawn(self, name: str, kind: BaseDistribution) -> Any:
        entry = self._entries[name]
        assert entry.prior is not None, "other entries are not kept"
        if isinstance(entry, Choices):
            return entry.choices[entry.choices.index(entry.prior.at)]  # 1 and True are equal, only one is a choice
        scale = {"log": entry.log, "complement_log": entry.complement_log}
        centre = unit_position(entry.prior.at, entry.low, entry.high, **scale)
        position = quantile(self._random(name).random(), centre, SPREAD[entry.prior.trust])
        return nearest_value(entry, value_at(entry, position), int if isinstance(kind, IntDistribution) else float)

    def _random(self, name: str) -> random.Random:
        return random.Random(f"prior/{self._seed}/{name}")

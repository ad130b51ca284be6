"""Sets of lanes on the device. A lane is a run's position in a pack."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.train.tables import to_device


class LaneSets:
    """Sets of the K lanes of a pack, each copied to the device once."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def index(self, lanes: Sequence[int]) -> Tensor:
        """Return lanes as numbers, (n,) int64."""
        key = tuple(lanes)
        if key not in self._indices:
            self._indices[key] = to_device(np.array(key, np.int64), self.device)
        return self._indices[key]

    def mask(self, lanes: Sequence[int]) -> Tensor:
        """Return which of all lanes are in `lanes`, (K,) bool."""
        key = tuple(lanes)
        if key not in self._masks:
            self._masks[key] = to_device(np.isin(np.arange(self.size), lanes), self.device)
        return self._masks[key]

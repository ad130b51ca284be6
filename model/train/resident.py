"""The tokens of a split on the device, from which the windows of batches are gathered.

Shapes: T tokens of context.
"""

import weakref

import numpy as np
import torch
from torch import Tensor

from model.data.prepared import Split

SHARE = 1 / 16  # of the device's memory that the tokens of one split may use


class ResidentSplit:
    """A copy of the tokens of a split on a device."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.source = split.tokens
        self.tokens = torch.from_numpy(split.tokens.astype(np.int32)).to(device)  # (n_targets + 1,)

    def windows(self, first: Tensor, length: Tensor, context: int) -> tuple[Tensor, Tensor]:
        """Return x and y, (..., T) each, as `model.data.batches.gather_batch` does.

        first: position of the first input of each row, (...). length: number of targets of each row, (...).
        """
        steps = torch.arange(context + 1, device=self.tokens.device)
        positions = (first[..., None] + steps).clamp(max=len(self.tokens) - 1)  # padding may point past the end
        ids = self.tokens[positions].long()
        masked = steps[:-1] >= length[..., None]
        x, y = ids[..., :-1].masked_fill(masked, 0), ids[..., 1:].masked_fill(masked, -1)
        return x.contiguous(), y.contiguous()


_copies: weakref.WeakKeyDictionary[Split, dict[torch.device, ResidentSplit]] = weakref.WeakKeyDictionary()


def resident_split(split: Split, device: torch.device) -> ResidentSplit | None:
    """Return the split on a device, where all trainers of this process share it; None if it is too large.

    A CPU reads the mapped file, which needs no copy.
    """
    if device.type == "cpu" or not fits(split, _memory_of(device)):
        return None
    copies = _copies.setdefault(split, {})
    if device not in copies:
        copies[device] = ResidentSplit(split, device)
    return copies[device]


def fits(split: Split, memory: int) -> bool:
    """Return whether the tokens of a split, 4 bytes each, may be copied to a device with this memory in bytes."""
    return 4 * len(split.tokens) <= SHARE * memory


def _memory_of(device: torch.device) -> int:
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return torch.cuda.get_device_properties(device).total_memory

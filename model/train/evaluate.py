"""Scoring: a whole held-out split at once, every target once, whatever the training batch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from model.config import TrainConfig
from model.data.batches import SequenceDataset
from model.data.prepare import PreparedData
from model.nn.context import Diagnostics
from model.train.pack import Pack

EVAL_TOKENS = 8192  # of one validation batch; the metric does not depend on it
EVAL_LOGITS = 2**26  # numbers in the logits of one validation batch, all runs together

Scores = tuple[list[float], list[float]]
"""Nats and targets predicted right, of each lane."""


class Evaluator:
    """A held-out split, in batches of one shape."""

    def __init__(self, config: TrainConfig, prepared: PreparedData, pack: Pack, split: str = "val") -> None:
        context = config.model.context
        self.split = prepared.splits[split]
        self.windows = SequenceDataset(self.split, config.data.layout, context)
        self.pack, self.device = pack, pack.device
        tokens = min(EVAL_TOKENS, EVAL_LOGITS // (prepared.vocab_size * pack.size))
        self.rows = max(1, tokens // context)
        # Sums of many losses want double precision, which Apple's GPUs do not have.
        self.precise = torch.float32 if self.device.type == "mps" else torch.float64

    def scores(self) -> Scores:
        """Score the weights as they are."""
        totals = torch.zeros(2, self.pack.size, dtype=self.precise, device=self.device)
        for x, y in self._batches():
            totals += torch.stack([total.to(self.precise) for total in self.pack.evaluate(x, y)])
        nats, hits = totals.tolist()
        return nats, hits

    def diagnostics(self, lane: int) -> Diagnostics:
        """Measure the diagnostics of one run on the first validation batch."""
        # As many rows whoever shares the pack: runs are looked at one by one.
        tokens = min(EVAL_TOKENS, EVAL_LOGITS // self.pack.vocab_size)
        rows = min(len(self.windows), max(1, tokens // self.windows.context))
        x, _ = self.windows.gather(np.arange(rows))
        return self.pack.diagnostics(lane, torch.from_numpy(x).to(self.device))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self.windows), self.rows):
            x, y = self.windows.gather(np.arange(first, min(first + self.rows, len(self.windows))))
            # All batches of one shape, for torch.compile; what is added has no targets.
            missing = ((0, self.rows - len(x)), (0, 0))
            inputs = torch.from_numpy(np.pad(x, missing)).to(self.device)
            yield inputs, torch.from_numpy(np.pad(y, missing, constant_values=-1)).to(self.device)

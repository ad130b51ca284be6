"""Evaluation on a whole validation or test split: every target counts once, for any training batch size."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.config import TrainConfig
from model.data.batches import SequenceDataset
from model.data.prepared import PreparedData, bits_per_byte
from model.nn.context import Diagnostics
from model.train.pack import Pack
from model.train.resident import resident_split
from model.train.tables import to_device

EVAL_TOKENS = 8192  # tokens of one validation batch; the scores do not depend on it
EVAL_LOGITS = 2**26  # logits of one validation batch, all runs together


class Scores(NamedTuple):
    """Sums over all targets of a split, one number per lane of the pack."""

    nats: list[float]
    """Cross-entropy in nats."""
    n_correct: list[float]
    """Targets that are predicted correctly."""


class Evaluator:
    """Scores the runs of a pack on one split, in batches of equal shape."""

    def __init__(self, config: TrainConfig, prepared: PreparedData, pack: Pack, split: str = "val") -> None:
        context = config.model.context
        self.split = prepared.splits[split]
        self.dataset = SequenceDataset(self.split, config.data.layout, context)
        self.pack, self.device = pack, pack.device
        self.resident = resident_split(self.split, self.device)
        tokens = min(EVAL_TOKENS, EVAL_LOGITS // (prepared.vocab_size * pack.size))
        self.batch_size = max(1, tokens // context)
        # A sum of many losses needs double precision, which Apple's GPUs do not have.
        self.sum_dtype = torch.float32 if self.device.type == "mps" else torch.float64

    def evaluate(self) -> Scores:
        """Return the scores of the current weights of all runs."""
        totals = torch.zeros(2, self.pack.size, dtype=self.sum_dtype, device=self.device)
        for x, y in self._batches():
            totals += torch.stack([total.to(self.sum_dtype) for total in self.pack.evaluate(x, y)])
        return Scores(*totals.tolist())

    def evaluate_averaged(self) -> Scores | None:
        """Return the scores of the averaged weights of all runs, None without regularization.ema."""
        if not self.pack.config.regularization.has_average():
            return None
        with self.pack.params.averaged():
            return self.evaluate()

    def test_scores(self) -> dict[str, Any]:
        """Return the metrics of the test split by their names, one number per lane each."""
        scores = {"test": self.evaluate(), "ema_test": self.evaluate_averaged()}
        losses = {name: [nats / self.split.n_targets for nats in s.nats] for name, s in scores.items() if s is not None}
        by_name: dict[str, Any] = {f"{name}_loss": own for name, own in losses.items()}
        return by_name | {f"{n}_bpb": [bits_per_byte(loss, self.split) for loss in own] for n, own in losses.items()}

    def diagnostics(self, lane: int) -> Diagnostics:
        """Return the diagnostics of one run's layers, measured on the first batch."""
        return self.pack.diagnostics(lane, self._first_rows())

    def activation_sizes(self) -> list[Tensor]:
        """Return the sizes of activations in the order of the forward pass, (K,) each.

        They are measured on the first rows of the split, as many as a training batch has.
        """
        return self.pack.activation_sizes(self._first_rows()[: self.pack.config.run.batch_size])

    def _first_rows(self) -> Tensor:
        """Return the inputs of the first batch, (B, T)."""
        # The number of rows does not depend on the size of the pack, because runs are measured one by one.
        tokens = min(EVAL_TOKENS, EVAL_LOGITS // self.pack.vocab_size)
        n_rows = min(len(self.dataset), max(1, tokens // self.dataset.context))
        x, _ = self.dataset.gather(np.arange(n_rows))
        return torch.from_numpy(x).to(self.device)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self.dataset), self.batch_size):
            rows = np.arange(first, min(first + self.batch_size, len(self.dataset)))
            # torch.compile needs batches of equal shape. The targets of the added rows are masked.
            missing = self.batch_size - len(rows)
            if self.resident is not None:
                spans = np.pad([self.dataset.first[rows], self.dataset.length[rows]], ((0, 0), (0, missing)))
                first_inputs, lengths = to_device(spans, self.device)
                yield self.resident.windows(first_inputs, lengths, self.dataset.context)
                continue
            x, y = (np.pad(part, ((0, missing), (0, 0))) for part in self.dataset.gather(rows))
            y[len(rows) :] = -1
            yield to_device(x, self.device), to_device(y, self.device)

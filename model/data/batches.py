"""Batches of a split for training and evaluation: inputs `x` and targets `y`. A masked target is -1, its input is 0.

Shapes: B sequences of a batch, T tokens of context. A row is one sequence of a batch.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.data.corpus_base import CorpusBase
from model.data.epochs import DocumentSampler
from model.data.prepared import Split
from model.data.split import SPLITS
from model.errors import ConfigError
from model.seeds import derive

Int = NDArray[np.int64]
Tokens: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]


class SequenceDataset:
    """The rows of a split. Together they contain every target exactly once.

    With layout stream, the rows are adjacent windows of the token stream, and the last row is padded. With layout
    documents, a row is a document from its end token to the next one, padded; a longer document fills several rows.
    """

    def __init__(self, split: Split, layout: str, context: int) -> None:
        """Lay out the rows.

        Raises:
            ConfigError: the stream is shorter than one context.
        """
        self.context = context
        self._tokens = split.tokens
        if layout == "documents":
            self.first, self.length = _cut_spans(split.starts, context)
        else:
            _check_length(split, context)
            self.first, self.length = _cut_spans(np.array([0, split.n_targets]), context)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.first)

    def gather(self, rows: Int) -> tuple[Int, Int]:
        """Return x and y, (B, T) each, of the rows with these numbers, (B,)."""
        return gather_batch(self._tokens, self.first[rows], self.length[rows], self.context)


class EpochRows(NamedTuple):
    """Rows of one epoch in their order."""

    tokens: Tokens
    first: Int
    """Position of the first input of each row, (rows,)."""
    length: Int
    """Number of targets of each row, (rows,)."""


class TrainingBatches:
    """An endless sequence of rows. Each epoch contains every row once, in an order of its own.

    The sequence depends only on the seed, not on the batch size. With layout stream, each epoch shifts its windows
    and drops targets that fill no window, so no target is masked and windows differ from epoch to epoch.
    If documents are dropped or shuffled, the streams of two epochs are held in memory.
    """

    def __init__(self, split: Split, data: CorpusBase, context: int, seed: int) -> None:
        """Lay out the rows.

        seed: of the run. Its random streams "data" and "documents" determine the order.

        Raises:
            ConfigError: an epoch could be shorter than one context, or have no document.
        """
        self._split, self._context, self._seed = split, context, seed
        self._stream = data.layout == "stream"
        self._dataset = SequenceDataset(split, data.layout, context)
        self._sampler = DocumentSampler(split, data, seed)
        if self._stream:
            _check_epoch(self._sampler.min_targets(), data, context)
        self._rows = -(-np.diff(split.starts) // context)  # number of rows of each document
        self._epochs: dict[int, EpochRows] = {}
        self._epoch_starts = [0]  # number of the first row of each epoch, for the epochs counted so far

    def batch(self, first: int, count: int) -> tuple[Int, Int]:
        """Return x and y, (count, T) each, of the rows first, first + 1, ... of the endless sequence."""
        parts = [gather_batch(*rows, self._context) for rows in self.rows(first, count)]
        return parts[0] if len(parts) == 1 else _concatenate(parts)

    def rows(self, first: int, count: int) -> list[EpochRows]:
        """Return the rows first, first + 1, ... of the endless sequence, one part for each epoch."""
        return [
            EpochRows(epoch.tokens, epoch.first[rows], epoch.length[rows]) for epoch, rows in self._locate(first, count)
        ]

    def n_targets(self, first: int, count: int) -> int:
        """Return the number of targets in the same rows, masked targets not counted."""
        if self._stream:
            return count * self._context
        return sum(int(epoch.length[rows].sum()) for epoch, rows in self._locate(first, count))

    def n_rows(self, epoch: int) -> int:
        """Return the number of rows of an epoch. Without drop_documents, all epochs have the same number."""
        if self._stream:
            targets = self._split.n_targets
            if self._sampler.n_dropped:
                targets = int(np.diff(self._split.starts)[self._sampler.documents(epoch)].sum())
            return _n_windows(targets, self._context)
        if self._sampler.n_dropped:
            return int(self._rows[self._sampler.documents(epoch)].sum())
        return len(self._dataset)

    def _locate(self, first: int, count: int) -> Iterator[tuple[EpochRows, slice]]:
        """Yield the epochs that contain these rows of the endless sequence, with the rows inside each epoch."""
        while count > 0:
            number, row = self._epoch_of(first)
            epoch = self._epoch(number)
            taken = min(count, len(epoch.first) - row)
            yield epoch, slice(row, row + taken)
            first += taken
            count -= taken

    def _epoch_of(self, row: int) -> tuple[int, int]:
        """Return the epoch that contains a row of the endless sequence, and the row's number inside the epoch."""
        if not self._sampler.n_dropped:
            return divmod(row, self.n_rows(0))
        while self._epoch_starts[-1] <= row:  # epochs differ in length, so each is counted once
            self._epoch_starts.append(self._epoch_starts[-1] + self.n_rows(len(self._epoch_starts) - 1))
        epoch = bisect_right(self._epoch_starts, row) - 1
        return epoch, row - self._epoch_starts[epoch]

    def _epoch(self, epoch: int) -> EpochRows:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # two are kept, because a batch may contain rows of two epochs
                del self._epochs[min(self._epochs)]
            rng = np.random.Generator(np.random.PCG64(derive(self._seed, f"data {epoch}")))
            self._epochs[epoch] = (self._stream_epoch if self._stream else self._documents_epoch)(epoch, rng)
        return self._epochs[epoch]

    def _stream_epoch(self, epoch: int, rng: np.random.Generator) -> EpochRows:
        tokens, T = self._sampler.stream(epoch), self._context
        n_rows = _n_windows(len(tokens) - 1, T)
        unused = len(tokens) - 1 - n_rows * T
        shift = rng.integers(min(T, unused + 1))
        rows = np.arange(n_rows) if self._sampler.is_sorted(epoch) else rng.permutation(n_rows)
        return EpochRows(tokens, rows * T + shift, np.full(n_rows, T))

    def _documents_epoch(self, epoch: int, rng: np.random.Generator) -> EpochRows:
        documents = self._sampler.documents(epoch)
        first_rows = np.cumsum(self._rows) - self._rows
        rows = _concatenate_ranges(first_rows[documents], self._rows[documents])
        if not self._sampler.is_sorted(epoch):
            rows = rows[rng.permutation(len(rows))]
        return EpochRows(self._split.tokens, self._dataset.first[rows], self._dataset.length[rows])


def gather_batch(tokens: Tokens, first: Int, length: Int, context: int) -> tuple[Int, Int]:
    """Return x and y, (B, T) each.

    first: position of the first input of each row, (B,). length: number of targets of each row, (B,).
    """
    steps = np.arange(context + 1)
    positions = first[:, None] + steps  # (B, T + 1)
    # clip: padding may point past the end of the file
    ids = tokens.take(positions, mode="clip").astype(np.int64)
    x, y = ids[:, :-1], ids[:, 1:]
    if (length < context).any():
        masked = steps[:-1] >= length[:, None]
        x[masked] = 0
        y = np.where(masked, -1, y)  # not in place, because x and y share ids
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def _concatenate(parts: list[tuple[Int, Int]]) -> tuple[Int, Int]:
    x, y = zip(*parts, strict=True)
    return np.concatenate(x), np.concatenate(y)


def _n_windows(n_targets: int, context: int) -> int:
    """Return the number of windows that fit for every shift, at least one."""
    return max(1, (n_targets + 1 - context) // context)


def _concatenate_ranges(start: Int, count: Int) -> Int:
    """Return the ranges start, start + 1, ... of `count` numbers each, one after the other."""
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)  # within its range
    return np.repeat(start, count) + offset


def _cut_spans(starts: Int, context: int) -> tuple[Int, Int]:
    """Return first position and number of targets of the rows that cut each span into contexts.

    starts: where each span starts, and where the last one ends, (spans + 1,).
    """
    spans = np.diff(starts)
    n_rows = -(-spans // context)
    first = np.repeat(starts[:-1], n_rows) + _concatenate_ranges(np.zeros_like(n_rows), n_rows) * context
    length = np.minimum(np.repeat(starts[1:], n_rows) - first, context)
    return first, length


def _check_length(split: Split, context: int) -> None:
    if split.n_targets < context:
        raise ConfigError(
            f"model.context: {SPLITS[split.name]} split has {split.n_targets} tokens, fewer than one context of "
            f"{context}; use a shorter context or more text"
        )


def _check_epoch(fewest: int, data: CorpusBase, context: int) -> None:
    if fewest < context:
        raise ConfigError(
            f"data.drop_documents: may leave {fewest} tokens of an epoch, fewer than one context of {context}, got "
            f"{data.drop_documents}; drop fewer documents, use a shorter context or more text"
        )

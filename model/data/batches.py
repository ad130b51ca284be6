"""Rows of a split, to train on and to score: inputs `x`, targets `y`; a masked target is -1, its input 0."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.data.corpus_base import CorpusBase
from model.data.epochs import DocumentSampler
from model.data.prepare import Split
from model.data.split import SPLITS
from model.errors import ConfigError
from model.seeds import derive

# B rows of a batch, T tokens of context

Int = NDArray[np.int64]
Tokens: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]


class SequenceDataset:
    """The rows that hold every target of a split exactly once.

    stream: windows side by side, the last one padded. documents: a document from its end token to the next,
    padded; a document longer than the context goes on in further rows.
    """

    def __init__(self, split: Split, layout: str, context: int) -> None:
        """Lay out the rows.

        Raises:
            ConfigError: a stream shorter than one context.
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
        """Return x and y, (B, T) each, of the rows with these numbers."""
        return gather_batch(self._tokens, self.first[rows], self.length[rows], self.context)


class EpochRows(NamedTuple):
    """The rows of one epoch in their order."""

    tokens: Tokens
    first: Int
    length: Int


class TrainingBatches:
    """An endless sequence of rows, epoch after epoch, each epoch every row once in an order of its own.

    A function of the seed and the place in the sequence alone, whatever the batch size. stream: each epoch
    shifts its windows and leaves out what fills none: no target is masked, and windows differ by epoch.
    Where documents are dropped or joined in another order, two epochs' streams are held in memory.
    """

    def __init__(self, split: Split, data: CorpusBase, context: int, seed: int) -> None:
        """Lay out the rows; the streams "data" and "documents" of the run's seed decide the order.

        Raises:
            ConfigError: an epoch could be shorter than one context, or have no document.
        """
        self._split, self._context, self._seed = split, context, seed
        self._stream = data.layout == "stream"
        self._windows = SequenceDataset(split, data.layout, context)
        self._documents = DocumentSampler(split, data, seed)
        if self._stream:
            _check_epoch(self._documents.fewest_targets(), data, context)
        self._rows = -(-np.diff(split.starts) // context)  # of each document
        self._epochs: dict[int, EpochRows] = {}
        self._begins = [0]  # the number of each epoch's first row, as far as epochs were counted

    def batch(self, first: int, count: int) -> tuple[Int, Int]:
        """Return x and y, (count, T) each, of the sequences number first, first + 1, ..."""
        parts = [
            gather_batch(epoch.tokens, epoch.first[rows], epoch.length[rows], self._context)
            for epoch, rows in self._places(first, count)
        ]
        return parts[0] if len(parts) == 1 else _concatenate(parts)

    def targets(self, first: int, count: int) -> int:
        """Return the number of targets, masked ones left out, in the same sequences."""
        if self._stream:
            return count * self._context
        return sum(int(epoch.length[rows].sum()) for epoch, rows in self._places(first, count))

    def n_rows(self, epoch: int) -> int:
        """Return the number of rows of an epoch; without drop_documents the same for all."""
        if self._stream:
            targets = self._split.n_targets
            if self._documents.n_dropped:
                targets = int(np.diff(self._split.starts)[self._documents.of(epoch)].sum())
            return _n_windows(targets, self._context)
        return int(self._rows[self._documents.of(epoch)].sum()) if self._documents.n_dropped else len(self._windows)

    def _places(self, first: int, count: int) -> Iterator[tuple[EpochRows, slice]]:
        """Yield the epochs that these sequences are in, with their rows there."""
        while count > 0:
            number, row = self._found(first)
            epoch = self._epoch(number)
            taken = min(count, len(epoch.first) - row)
            yield epoch, slice(row, row + taken)
            first += taken
            count -= taken

    def _found(self, row: int) -> tuple[int, int]:
        """Return the epoch of a row of the whole sequence, and its number there."""
        if not self._documents.n_dropped:
            return divmod(row, self.n_rows(0))
        while self._begins[-1] <= row:  # epochs differ in length: each is counted once
            self._begins.append(self._begins[-1] + self.n_rows(len(self._begins) - 1))
        epoch = bisect_right(self._begins, row) - 1
        return epoch, row - self._begins[epoch]

    def _epoch(self, epoch: int) -> EpochRows:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # a batch may straddle two
                del self._epochs[min(self._epochs)]
            rng = np.random.Generator(np.random.PCG64(derive(self._seed, f"data {epoch}")))
            self._epochs[epoch] = (self._stream_epoch if self._stream else self._documents_epoch)(epoch, rng)
        return self._epochs[epoch]

    def _stream_epoch(self, epoch: int, rng: np.random.Generator) -> EpochRows:
        tokens, T = self._documents.joined(epoch), self._context
        n_rows = _n_windows(len(tokens) - 1, T)
        room = len(tokens) - 1 - n_rows * T
        shift = rng.integers(min(T, room + 1))
        rows = np.arange(n_rows) if self._documents.ascending(epoch) else rng.permutation(n_rows)
        return EpochRows(tokens, rows * T + shift, np.full(n_rows, T))

    def _documents_epoch(self, epoch: int, rng: np.random.Generator) -> EpochRows:
        documents = self._documents.of(epoch)
        begins = np.cumsum(self._rows) - self._rows
        rows = _concatenate_ranges(begins[documents], self._rows[documents])
        if not self._documents.ascending(epoch):
            rows = rows[rng.permutation(len(rows))]
        return EpochRows(self._split.tokens, self._windows.first[rows], self._windows.length[rows])


def gather_batch(tokens: Tokens, first: Int, length: Int, context: int) -> tuple[Int, Int]:
    """Return x and y, (B, T) each: `length` targets a row, its inputs from position `first` on."""
    steps = np.arange(context + 1)
    at = first[:, None] + steps  # (B, T + 1)
    # clip: padding may point past the end of the file
    ids = tokens.take(at, mode="clip").astype(np.int64)
    x, y = ids[:, :-1], ids[:, 1:]
    if (length < context).any():
        masked = steps[:-1] >= length[:, None]
        x[masked] = 0
        y = np.where(masked, -1, y)  # not in place: x and y share ids
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def _concatenate(parts: list[tuple[Int, Int]]) -> tuple[Int, Int]:
    x, y = zip(*parts, strict=True)
    return np.concatenate(x), np.concatenate(y)


def _n_windows(n_targets: int, context: int) -> int:
    """Return the number of windows that fit whatever their shift, at least one."""
    return max(1, (n_targets + 1 - context) // context)


def _concatenate_ranges(begin: Int, count: Int) -> Int:
    """Return begin, begin + 1, ... of each range, one after the other."""
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)  # place within its range
    return np.repeat(begin, count) + nth


def _cut_spans(starts: Int, context: int) -> tuple[Int, Int]:
    """Return first position and number of targets of the rows that cut each span into contexts."""
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

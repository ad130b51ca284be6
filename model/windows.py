"""Rows of a split, to train on and to score: inputs `x`, targets `y`; a masked target is -1, its input 0."""

import numpy as np
from numpy.typing import NDArray

from model.data import Split
from model.section import ConfigError
from model.seeds import derive

# B rows of a batch, T tokens of context

Int = NDArray[np.int64]


class Windows:
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
        self._steps = np.arange(context + 1)
        if layout == "documents":
            self.first, self.length = _pieces(split.starts, context)
        else:
            _check_length(split, context)
            self.first, self.length = _pieces(np.array([0, split.n_targets]), context)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.first)

    def gather(self, rows: Int) -> tuple[Int, Int]:
        """Return x and y, (B, T) each, of the rows with these numbers."""
        return self.cut(self.first[rows], self.length[rows])

    def cut(self, first: Int, length: Int) -> tuple[Int, Int]:
        """Return x and y, (B, T) each: `length` targets a row, its inputs from position `first` on."""
        at = first[:, None] + self._steps  # (B, T + 1)
        # clip: padding may point past the end of the file
        ids = self._tokens.take(at, mode="clip").astype(np.int64)
        x, y = ids[:, :-1], ids[:, 1:]
        if (length < self.context).any():
            masked = self._steps[:-1] >= length[:, None]
            x[masked] = 0
            y = np.where(masked, -1, y)  # not in place: x and y share ids
        return np.ascontiguousarray(x), np.ascontiguousarray(y)


class TrainingOrder:
    """An endless sequence of rows, epoch after epoch, each epoch every row once in an order of its own.

    A function of the seed and the place in the sequence alone, whatever the batch size. stream: each epoch
    shifts its windows and leaves out what fills none: no target is masked, and windows differ by epoch.
    """

    def __init__(self, split: Split, layout: str, context: int, seed: int) -> None:
        """Lay out the rows; the stream "data" of the run's seed decides the order."""
        self._windows = Windows(split, layout, context)
        self._seed = seed
        self._epochs: dict[int, tuple[Int, Int]] = {}
        n_full = (split.n_targets + 1 - context) // context  # that fit whatever the shift
        self.n_rows = len(self._windows) if layout == "documents" else max(1, n_full)
        room = split.n_targets - self.n_rows * context
        self._n_shifts = 1 if layout == "documents" else min(context, room + 1)

    def batch(self, first: int, count: int) -> tuple[Int, Int]:
        """Return x and y, (count, T) each, of the sequences number first, first + 1, ..."""
        return self._windows.cut(*self._places(first, count))

    def targets(self, first: int, count: int) -> int:
        """Return the number of targets, masked ones left out, in the same sequences."""
        return int(self._places(first, count)[1].sum())

    def _places(self, first: int, count: int) -> tuple[Int, Int]:
        """Return where each of these sequences begins and how many targets it has."""
        starts, lengths = [], []
        while count > 0:
            epoch, row = divmod(first, self.n_rows)
            epoch_starts, epoch_lengths = self._epoch(epoch)
            starts.append(epoch_starts[row : row + count])
            lengths.append(epoch_lengths[row : row + count])
            first += len(starts[-1])
            count -= len(starts[-1])
        return np.concatenate(starts), np.concatenate(lengths)

    def _epoch(self, epoch: int) -> tuple[Int, Int]:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # a batch may straddle two
                del self._epochs[min(self._epochs)]
            rng = np.random.Generator(np.random.PCG64(derive(self._seed, f"data {epoch}")))
            shift = rng.integers(self._n_shifts)
            rows = rng.permutation(self.n_rows)
            self._epochs[epoch] = self._windows.first[rows] + shift, self._windows.length[rows]
        return self._epochs[epoch]


def _pieces(starts: Int, context: int) -> tuple[Int, Int]:
    """Return first position and number of targets of the rows that cut each span into contexts."""
    spans = np.diff(starts)
    n_rows = -(-spans // context)
    nth = np.arange(n_rows.sum()) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)  # row within its span
    first = np.repeat(starts[:-1], n_rows) + nth * context
    length = np.minimum(np.repeat(starts[1:], n_rows) - first, context)
    return first, length


def _check_length(split: Split, context: int) -> None:
    if split.n_targets < context:
        name = {"train": "training", "val": "validation"}.get(split.name, split.name)
        raise ConfigError(
            f"model.context: {name} split has {split.n_targets} tokens, fewer than one context of {context}; "
            "use a shorter context or more text"
        )

"""Documents that an n-gram model of the training tokens makes up."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model.data.tokenizer import END

# N tokens of a stream, B documents drawn side by side

Int = NDArray[np.int64]

BATCH_SIZE = 1000  # documents drawn side by side


class NGramModel:
    """An n-gram model of a stream `0 d1 0 d2 ... 0`, by maximum likelihood: no smoothing, no backoff.

    The next token is the one that follows at a place drawn at random among all that have the same n - 1 tokens
    before them, end tokens in front of a document. Walking from there, only contexts of the stream are met, so that
    nothing has to be said of others.
    """

    def __init__(self, tokens: NDArray[np.uint16] | NDArray[np.uint32], n: int) -> None:
        """Sort the places of the stream by their context."""
        self._tokens = tokens
        self._context = _context_ids(tokens.astype(np.int64), n)
        followed = self._context[:-1]
        self._places = np.argsort(followed, kind="stable")
        self._count = np.bincount(followed)
        self._begin = np.cumsum(self._count) - self._count
        self._longest = int(np.diff(np.flatnonzero(tokens == END)).max()) - 1

    def documents(self, count: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint16] | NDArray[np.uint32]]:
        """Yield documents without their end tokens; one longer than all of the stream's is drawn again.

        That keeps every n-gram one of the stream, and makes documents shorter: names by bigrams 5.1 characters
        instead of 6.2, by 5-grams 6.2.
        """
        while count > 0:
            for document in self._drawn(BATCH_SIZE, rng):
                if count > 0 and len(document) <= self._longest:
                    count -= 1
                    yield document

    def _drawn(self, B: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint16] | NDArray[np.uint32]]:
        """Yield documents, in the order drawn; those that are too long have one token too many."""
        at = np.zeros(B, np.int64)  # (B,) the last place that was copied
        open_ = np.ones(B, bool)
        columns: list[NDArray[np.uint16] | NDArray[np.uint32]] = []
        while open_.any() and len(columns) <= self._longest:
            context = self._context[at]
            nth = rng.integers(self._count[context])
            at = self._places[self._begin[context] + nth] + 1
            columns.append(self._tokens[at])
            open_ &= columns[-1] != END
        drawn = np.stack(columns, axis=1)  # (B, longest of them)
        ended = drawn == END
        lengths = np.where(ended.any(axis=1), ended.argmax(axis=1), drawn.shape[1])
        for row, length in zip(drawn, lengths, strict=True):
            yield row[:length]


def _context_ids(tokens: Int, n: int) -> Int:
    """Return a number for the n - 1 tokens up to each place, equal for equal ones, 0 for the start of a document."""
    V = int(tokens.max()) + 1
    context = tokens
    for _ in range(n - 2):
        # an end token begins anew: what stood before it is another document
        longer = np.concatenate([[0], context[:-1]]) * V + tokens
        context = np.unique(np.where(tokens == END, 0, longer), return_inverse=True)[1]
    return context

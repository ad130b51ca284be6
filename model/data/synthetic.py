"""Synthetic documents, sampled from an n-gram model of the training tokens.

Shapes: N tokens of a stream, B documents sampled side by side.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model.data.tokenizer import END

Int = NDArray[np.int64]

BATCH_SIZE = 1000  # documents sampled side by side


class NGramModel:
    """An n-gram model of a token stream `0 d1 0 d2 ... 0`, by maximum likelihood without smoothing or backoff.

    The model copies the token that follows a position of the stream. The position is drawn at random among all
    positions whose last n - 1 tokens are equal to those of the sample, with end tokens before the start of a document.
    Every context of a sample therefore occurs in the stream, and unseen contexts need no probabilities.
    """

    def __init__(self, tokens: NDArray[np.uint16] | NDArray[np.uint32], n: int) -> None:
        """Sort the positions of the stream by their context. tokens: (N,)."""
        self._tokens = tokens
        self._context = _context_ids(tokens.astype(np.int64), n)
        with_successor = self._context[:-1]
        self._positions = np.argsort(with_successor, kind="stable")
        self._count = np.bincount(with_successor)
        self._first = np.cumsum(self._count) - self._count
        self._longest = int(np.diff(np.flatnonzero(tokens == END)).max()) - 1

    def sample(self, count: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint16] | NDArray[np.uint32]]:
        """Yield `count` documents without their end tokens.

        A document that is longer than every document of the stream is sampled again, so that all n-grams occur in the
        stream. This makes documents shorter: names from bigrams have 5.1 characters instead of 6.2, from 5-grams 6.2.
        """
        while count > 0:
            for document in self._sample_batch(BATCH_SIZE, rng):
                if count > 0 and len(document) <= self._longest:
                    count -= 1
                    yield document

    def _sample_batch(self, B: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint16] | NDArray[np.uint32]]:
        """Yield B documents; those that are too long have one token more than the longest document of the stream."""
        position = np.zeros(B, np.int64)  # (B,) of the last token that was copied
        unfinished = np.ones(B, bool)
        columns: list[NDArray[np.uint16] | NDArray[np.uint32]] = []
        while unfinished.any() and len(columns) <= self._longest:
            context = self._context[position]
            choice = rng.integers(self._count[context])
            position = self._positions[self._first[context] + choice] + 1
            columns.append(self._tokens[position])
            unfinished &= columns[-1] != END
        sampled = np.stack(columns, axis=1)  # (B, longest document)
        ended = sampled == END
        lengths = np.where(ended.any(axis=1), ended.argmax(axis=1), sampled.shape[1])
        for row, length in zip(sampled, lengths, strict=True):
            yield row[:length]


def _context_ids(tokens: Int, n: int) -> Int:
    """Return an id of the last n - 1 tokens at each position, (N,); 0 at the start of a document."""
    V = int(tokens.max()) + 1
    context = tokens
    for _ in range(n - 2):
        # An end token resets the context, because the tokens before it belong to another document.
        longer = np.concatenate([[0], context[:-1]]) * V + tokens
        context = np.unique(np.where(tokens == END, 0, longer), return_inverse=True)[1]
    return context

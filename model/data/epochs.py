"""Selects the training documents of each epoch and their order.

Shapes: N documents of the training split.
"""

import numpy as np
from numpy.typing import NDArray

from model.data.corpus_base import CorpusBase
from model.data.ngrams import unigram_probabilities
from model.data.prepared import Split
from model.errors import ConfigError
from model.seeds import derive

Int = NDArray[np.int64]


class DocumentSampler:
    """Samples the documents of each epoch. The sample depends only on the seed and the epoch."""

    def __init__(self, split: Split, data: CorpusBase, seed: int) -> None:
        """Read drop_documents, shuffle_documents and curriculum from the data section.

        Raises:
            ConfigError: drop_documents would leave no document.
        """
        self._split, self._data, self._seed = split, data, seed
        n, share = split.n_documents, data.drop_documents
        self.n_dropped = max(1, round(share * n)) if share else 0
        if self.n_dropped >= n:
            raise ConfigError(f"data.drop_documents: must leave one of the {n} training documents, got {share}")
        self._rank = _difficulty_rank(split, data.curriculum)

    def is_sorted(self, epoch: int) -> bool:
        """Return whether the curriculum sorts this epoch, from short to long or from easy to hard documents."""
        return self._data.curriculum != "none" and epoch == 0

    def is_original(self, epoch: int) -> bool:
        """Return whether the epoch contains all documents in the order of the split."""
        return not (self.n_dropped or self._data.shuffle_documents or self.is_sorted(epoch))

    def documents(self, epoch: int) -> Int:
        """Return the numbers of the epoch's documents in their order, (N - n_dropped,)."""
        if self.is_original(epoch):
            return np.arange(self._split.n_documents)
        rng = np.random.Generator(np.random.PCG64(derive(self._seed, f"documents {epoch}")))
        selected = rng.permutation(self._split.n_documents)[self.n_dropped :]
        if self.is_sorted(epoch):
            return selected[np.argsort(self._rank[selected])]
        return selected if self._data.shuffle_documents else np.sort(selected)

    def min_targets(self) -> int:
        """Return the number of targets of the shortest possible epoch."""
        return int(np.sort(np.diff(self._split.starts))[: self._split.n_documents - self.n_dropped].sum())

    def stream(self, epoch: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Return the epoch's documents as one token stream: the stream of the split itself, or one in memory."""
        if self.is_original(epoch):
            return self._split.tokens
        starts = self._split.starts.tolist()
        parts = [self._split.tokens[starts[i] : starts[i + 1]] for i in self.documents(epoch).tolist()]
        return np.concatenate([*parts, self._split.tokens[-1:]])  # with the last end token


def _difficulty_rank(split: Split, curriculum: str) -> Int:
    """Return the rank of each document in the curriculum, (N,). Equal documents are in the order of the split."""
    if curriculum == "none":
        return np.arange(split.n_documents)
    score = np.diff(split.starts).astype(np.float64)
    if curriculum == "easy":
        score = _unigram_nats(split) / score
    rank = np.empty(split.n_documents, np.int64)
    # Rounded, because the last bits depend on the order of a sum and would rank equal documents.
    rank[np.argsort(score.round(9), kind="stable")] = np.arange(split.n_documents)
    return rank


def _unigram_nats(split: Split) -> NDArray[np.float64]:
    """Return the cross-entropy in nats of each document under the unigram model, its end token included, (N,)."""
    nats = -np.log(unigram_probabilities(split.real_tokens.astype(np.int64), int(split.tokens.max()) + 1))
    return np.add.reduceat(nats[split.tokens[1:]], split.starts[:-1])

"""Which training documents each epoch has, and in which order."""

import numpy as np
from numpy.typing import NDArray

from model.data.corpus_base import CorpusBase
from model.data.ngrams import unigram_probabilities
from model.data.prepare import Split
from model.errors import ConfigError
from model.seeds import derive

# N documents of the split

Int = NDArray[np.int64]


class DocumentSampler:
    """The documents of each epoch, a function of the seed and the epoch alone."""

    def __init__(self, split: Split, data: CorpusBase, seed: int) -> None:
        """Read off the section what is asked for.

        Raises:
            ConfigError: no document would be left.
        """
        self._split, self._data, self._seed = split, data, seed
        n, share = split.documents, data.drop_documents
        self.n_dropped = max(1, round(share * n)) if share else 0
        if self.n_dropped >= n:
            raise ConfigError(f"data.drop_documents: must leave one of the {n} training documents, got {share}")
        self._rank = _difficulty_rank(split, data.curriculum)

    def ascending(self, epoch: int) -> bool:
        """Return whether this is the epoch that goes from short or easy to long or hard."""
        return self._data.curriculum != "none" and epoch == 0

    def as_written(self, epoch: int) -> bool:
        """Return whether the epoch has all documents in the order of the split."""
        return not (self.n_dropped or self._data.shuffle_documents or self.ascending(epoch))

    def of(self, epoch: int) -> Int:
        """Return the numbers of the epoch's documents, (N - n_dropped,), in its order."""
        if self.as_written(epoch):
            return np.arange(self._split.documents)
        rng = np.random.Generator(np.random.PCG64(derive(self._seed, f"documents {epoch}")))
        kept = rng.permutation(self._split.documents)[self.n_dropped :]
        if self.ascending(epoch):
            return kept[np.argsort(self._rank[kept])]
        return kept if self._data.shuffle_documents else np.sort(kept)

    def fewest_targets(self) -> int:
        """Return the targets of the shortest epoch there could be."""
        return int(np.sort(np.diff(self._split.starts))[: self._split.documents - self.n_dropped].sum())

    def joined(self, epoch: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Return the epoch's documents as a stream like that of the split, in memory unless it is the same."""
        if self.as_written(epoch):
            return self._split.tokens
        starts = self._split.starts.tolist()
        parts = [self._split.tokens[starts[i] : starts[i + 1]] for i in self.of(epoch).tolist()]
        return np.concatenate([*parts, self._split.tokens[-1:]])  # the last end token


def _difficulty_rank(split: Split, curriculum: str) -> Int:
    """Return each document's place in the ascending order, (N,); equal ones in the order of the split."""
    if curriculum == "none":
        return np.arange(split.documents)
    score = np.diff(split.starts).astype(np.float64)
    if curriculum == "easy":
        score = _unigram_nats(split) / score
    rank = np.empty(split.documents, np.int64)
    # rounded: the last bits depend on the order of a sum, and would decide between equals
    rank[np.argsort(score.round(9), kind="stable")] = np.arange(split.documents)
    return rank


def _unigram_nats(split: Split) -> NDArray[np.float64]:
    """Return what each document costs under the unigram table, its end token included, (N,)."""
    nats = -np.log(unigram_probabilities(split.real.astype(np.int64), int(split.tokens.max()) + 1))
    return np.add.reduceat(nats[split.tokens[1:]], split.starts[:-1])

"""The documents of a corpus: each once, drawn at random into three splits."""

import numpy as np

from model.data.corpus import Corpus
from model.errors import ConfigError
from model.seeds import derive

SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""Splits, and what they are called in messages."""

Documents = dict[str, list[str]]  # by split


def distinct_documents(corpus: Corpus) -> tuple[list[str], int]:
    """Return the documents that are not blank, each once, and how many repeats were left out."""
    kept = [text for text in corpus.documents() if text.strip()]
    found = list(dict.fromkeys(kept))
    for number, text in enumerate(found, 1):
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
            raise ConfigError(f"data: document {number} holds a lone surrogate, which is not text") from None
    return found, len(kept) - len(found)


def split_documents(documents: list[str], corpus: Corpus) -> Documents:
    """Return the documents by split, drawn at random, each split in the corpus' order."""
    rng = np.random.Generator(np.random.PCG64(derive(corpus.split_seed, "split")))
    drawn = rng.permutation(len(documents))[: corpus.max_documents or None]
    n = len(drawn)
    if n < len(SPLITS):
        raise ConfigError(
            f"data: needs at least 3 distinct documents (train, validation, test), got {n} from {corpus.name}"
        )
    n_val, n_test = (max(1, round(f * n)) for f in (corpus.val_fraction, corpus.test_fraction))
    val, test, train = np.split(drawn, [n_val, n_val + n_test])
    return {name: [documents[i] for i in np.sort(part)] for name, part in zip(SPLITS, (train, val, test), strict=True)}

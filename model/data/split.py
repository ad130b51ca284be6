"""Remove duplicate documents of a corpus and draw the others at random into three splits."""

from typing import NamedTuple

import numpy as np

from model.data.corpus import Corpus
from model.errors import ConfigError
from model.seeds import derive

SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""Names of the splits, and their names in messages."""

Documents = dict[str, list[str]]
"""Documents by split."""


class RowCounts(NamedTuple):
    """What became of the rows of a source."""

    read: int
    """Rows of tables, or documents of other sources, without those that are blank."""
    missing: int
    """Rows of tables without text in the column."""
    repeated: int
    """Documents that are equal to an earlier one."""

    def as_dict(self) -> dict[str, int]:
        """Return the counts as meta.json stores them."""
        return self._asdict()


def distinct_documents(corpus: Corpus) -> tuple[list[str], RowCounts]:
    """Return the documents that are not blank, each once, and what was left out.

    Raises:
        ConfigError: a document cannot be encoded as UTF-8.
    """
    texts, blank = [], 0
    for text in corpus.documents():
        if text.strip():
            texts.append(text)
        else:
            blank += 1
    distinct = list(dict.fromkeys(texts))
    for number, text in enumerate(distinct, 1):
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can contain one half of a surrogate pair
            raise ConfigError(f"data: document {number} holds a lone surrogate, which is not text") from None
    missing = blank if corpus.has_rows else 0  # blank lines between paragraphs are not missing text
    return distinct, RowCounts(len(texts) + missing, missing, len(texts) - len(distinct))


def split_documents(documents: list[str], corpus: Corpus) -> Documents:
    """Return the documents by split. Documents are assigned at random; each split is in the order of the corpus.

    Raises:
        ConfigError: there are fewer documents than splits.
    """
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

"""The files of prepared data: for each split, the token ids and the positions where documents start."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.corpus_base import CorpusBase
from model.data.split import SPLITS
from model.data.synthetic import NGramModel
from model.data.tokenizer import END, UnknownCharacter, Vocabulary
from model.errors import ConfigError
from model.seeds import derive

BATCH_DOCUMENTS = 1000  # documents that are tokenized between two progress reports

Progress = Callable[[str, float], None]
"""Callback that receives a description of the work and the fraction that is done, in [0, 1]."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the type of the token ids in the files."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def count_utf8_bytes(texts: Iterable[str]) -> int:
    """Return the number of bytes of the texts in UTF-8."""
    return sum(len(text.encode()) for text in texts)


def write_split(
    folder: Path, name: str, texts: list[str], vocabulary: Vocabulary, progress: Progress
) -> dict[str, int]:
    """Tokenize one split and write its two files; return its counts, as meta.json stores them.

    Raises:
        ConfigError: a character has no id in the vocabulary.
    """
    dtype = token_dtype(vocabulary.vocab_size)
    end = np.full(1, END, dtype)
    lengths: list[int] = []
    n_unknown = 0
    with open(folder / f"{name}.bin", "wb") as file:
        file.write(end.tobytes())
        for first in range(0, len(texts), BATCH_DOCUMENTS):
            progress(f"tokenizing {name}", first / len(texts))
            batch = _encode(name, texts[first : first + BATCH_DOCUMENTS], vocabulary)
            flat = np.concatenate([ids for document in batch for ids in (document, end)]).astype(dtype)
            file.write(flat.tobytes())  # tofile() would lose the errno when the disk is full
            lengths += [len(document) + 1 for document in batch]
            n_unknown += vocabulary.count_unknown(flat)
    progress(f"tokenizing {name}", 1.0)
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    (folder / f"{name}.starts").write_bytes(starts.tobytes())
    counts = {"documents": len(texts), "tokens": int(starts[-1]) + 1, "text_bytes": count_utf8_bytes(texts)}
    return counts | {"unknown": n_unknown, "synthetic": 0}


def add_synthetic(folder: Path, counts: dict[str, int], corpus: CorpusBase, dtype: np.dtype[Any]) -> bytes:
    """Append synthetic documents to the training split; return their token ids as bytes.

    counts: of the training split, which are updated in place.
    """
    tokens = np.fromfile(folder / "train.bin", dtype)
    starts = np.fromfile(folder / "train.starts", np.int64)
    rng = np.random.Generator(np.random.PCG64(derive(corpus.split_seed, "synthetic")))
    count = max(1, round(corpus.synthetic * counts["documents"]))
    sampled = list(NGramModel(tokens, corpus.synthetic_n()).sample(count, rng))
    end = np.full(1, END, dtype)
    content = np.concatenate([ids for document in sampled for ids in (document, end)]).tobytes()
    with open(folder / "train.bin", "ab") as file:
        file.write(content)
    with open(folder / "train.starts", "ab") as file:
        file.write((starts[-1] + np.cumsum([len(document) + 1 for document in sampled], dtype=np.int64)).tobytes())
    counts["documents"] += count
    counts["tokens"] += len(content) // dtype.itemsize
    counts["synthetic"] = count
    return content


def _encode(split: str, texts: list[str], vocabulary: Vocabulary) -> list[NDArray[np.int64]]:
    try:
        return vocabulary.encode_batch(texts)
    except UnknownCharacter as error:
        raise ConfigError(
            f"tokenizer.unknown: must be true where training text lacks a character, got false, and {error} of the "
            f"{SPLITS[split]} split is not in it; set tokenizer.unknown to true, or tokenizer.name to bytes or bpe"
        ) from None

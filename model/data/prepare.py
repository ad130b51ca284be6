"""Prepared data: a corpus split by document and tokenized once per machine, in files that every worker maps.

A split is one stream of ids, an end token before each document and one after the last: `0 d1 0 d2 ... 0`.
Each id after the first is a target once.
"""

import errno
import importlib.metadata
import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.cache import cache_root, locked
from model.data.corpus import Corpus
from model.data.split import SPLITS, Documents, distinct_documents, split_documents
from model.data.text_files import file_sha256
from model.data.token_files import Progress, add_synthetic, count_utf8_bytes, token_dtype, write_split
from model.data.tokenizer import Tokenizer, Vocabulary, load_vocabulary
from model.errors import CacheError, ConfigError

FORMAT = 1  # raise it when the same text would be prepared differently
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, eq=False)
class Split:
    """One split's stream of ids, mapped from its file."""

    name: str
    tokens: NDArray[np.uint16] | NDArray[np.uint32]  # (n_targets + 1,)
    starts: NDArray[np.int64]  # (documents + 1,) where the end token before each document is; then the last one
    text_bytes: int
    """Of the documents that are not synthetic."""
    documents: int
    unknown: int
    synthetic: int = 0
    """How many of the documents, the last ones, are made up."""

    @property
    def n_targets(self) -> int:
        """Tokens that are predicted: all but the first."""
        return len(self.tokens) - 1

    @property
    def real(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """The stream of the documents that are not synthetic, to count words in."""
        return self.tokens[: self.starts[self.documents - self.synthetic] + 1]


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A corpus on disk, ready to train on; equal hashes mean equal text, splits and tokenizer."""

    folder: Path
    hash: str
    vocab_size: int
    splits: dict[str, Split]

    def tokenizer(self) -> Vocabulary:
        """Return the vocabulary that the ids belong to."""
        return load_vocabulary((self.folder / "tokenizer.json").read_text("utf-8"))


def bits_per_byte(nats: float, split: Split) -> float:
    """Return the bits that a mean loss in nats per target costs for each UTF-8 byte of the split's text.

    An unknown character is charged a choice among all 1,114,112 code points, so that a tokenizer gains
    nothing by not knowing it.
    """
    bits = nats * split.n_targets / math.log(2) + split.unknown * math.log2(sys.maxunicode + 1)
    return bits / split.text_bytes


def prepare(corpus: Corpus, tokenizer: Tokenizer, progress: Progress | None = None) -> PreparedData:
    """Return the prepared data, made now if this machine does not have it yet.

    Raises:
        ConfigError: the corpus cannot be read, or is too small.
        CacheError: the cache cannot be written to.
    """
    folder = cache_root() / f"{corpus.name}-{_cache_key(corpus, tokenizer)[:12]}"
    if not folder.exists():
        try:
            with locked(folder):
                if not folder.exists():  # else another process made it while we waited
                    _prepare_folder(folder, corpus, tokenizer, progress or (lambda message, fraction: None))
        except OSError as error:
            raise CacheError(
                f"data: cannot write in {folder.parent}: {error.strerror or error}; "
                "set HPO_CACHE to a folder that can be written to"
            ) from None
    return _open_prepared(folder)


def list_prepared() -> list[dict[str, Any]]:
    """Return the description of each prepared corpus of this machine, with its `folder`."""
    found = sorted(cache_root().glob("*/meta.json"))
    return [json.loads(path.read_text("utf-8")) | {"folder": str(path.parent)} for path in found]


def stderr_progress(patience: float = 1.0) -> Progress:
    """Return a progress that prints to stderr, only about work that takes longer than `patience` seconds."""
    begun = time.monotonic()
    last = ""

    def show(message: str, fraction: float) -> None:
        nonlocal last
        line = f"{message}: {fraction:.0%}"
        if time.monotonic() - begun > patience and line != last:
            print(line, file=sys.stderr, flush=True)
            last = line

    return show


def _cache_key(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Return a hash of the settings and of the source files, quick enough for every start."""
    fields = {"format": FORMAT, "corpus": corpus.preparation(), "tokenizer": tokenizer.model_dump()}
    key = sha256(json.dumps(fields, sort_keys=True).encode())
    for path in corpus.files():
        key.update(file_sha256(path))
    return key.hexdigest()


def _prepare_folder(folder: Path, corpus: Corpus, tokenizer: Tokenizer, progress: Progress) -> None:
    progress(f"reading {corpus.name}", 0.0)
    documents, repeats = distinct_documents(corpus)
    splits = split_documents(documents, corpus)
    progress(f"training the {tokenizer.name} tokenizer", 0.0)
    vocabulary = tokenizer.train(splits["train"])
    meta = {
        "name": corpus.name,
        "vocab_size": vocabulary.vocab_size,
        "duplicates_removed": repeats,
        "corpus": corpus.preparation(),
        "tokenizer": tokenizer.model_dump(),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "tokenizers")}
        | {"python": sys.version.split()[0], "format": str(FORMAT)},
    }
    beside = folder.with_name(f".{folder.name}.part")  # we hold the lock: an old one belongs to a dead process
    shutil.rmtree(beside, ignore_errors=True)
    try:
        meta |= _write_files(beside, splits, vocabulary, corpus, progress)
        (beside / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", "utf-8")
        beside.rename(folder)
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        size = sum(count_utf8_bytes(texts) for texts in splits.values()) * token_dtype(vocabulary.vocab_size).itemsize
        raise CacheError(
            f"data: {str(error.strerror).lower()} preparing {corpus.name} under {folder.parent}; "
            f"needs up to {size * (1 + corpus.synthetic) / 1e6:.1f} MB; set HPO_CACHE to a folder with room"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _data_hash(splits: Documents, synthetic: bytes, vocabulary: Vocabulary, corpus: Corpus) -> str:
    """Return a hash of what training sees: every document in its split, the tokenizer, how it was split."""
    parameters = corpus.model_dump(include={"val_fraction", "test_fraction", "split_seed", "max_documents"})
    whole = sha256(json.dumps([FORMAT, parameters], sort_keys=True).encode())
    whole.update(vocabulary.to_json().encode())
    for name in SPLITS:
        whole.update(f"\n{name} {len(splits[name])}\n".encode())
        for text in splits[name]:
            whole.update(sha256(text.encode()).digest())
    whole.update(synthetic)
    return whole.hexdigest()


def _write_files(
    folder: Path, splits: Documents, vocabulary: Vocabulary, corpus: Corpus, progress: Progress
) -> dict[str, Any]:
    """Write everything but the description; return the part of it that is known only now."""
    folder.mkdir()
    counts = {name: write_split(folder, name, splits[name], vocabulary, progress) for name in SPLITS}
    synthetic = b""
    if corpus.synthetic:
        progress("drawing synthetic documents", 0.0)
        synthetic = add_synthetic(folder, counts["train"], corpus, token_dtype(vocabulary.vocab_size))
    (folder / "tokenizer.json").write_text(vocabulary.to_json(), "utf-8")
    return {"hash": _data_hash(splits, synthetic, vocabulary, corpus), "splits": counts}


def _open_prepared(folder: Path) -> PreparedData:
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        dtype = token_dtype(meta["vocab_size"])
        splits = {name: _map_split(folder, name, dtype, counts) for name, counts in meta["splits"].items()}
    except (OSError, ValueError) as error:
        # a power cut can leave files shorter than their folder promises
        raise ConfigError(f"data: damaged: {folder}: {error}; delete the folder and run again") from None
    return PreparedData(folder, meta["hash"], meta["vocab_size"], splits)


def _map_split(folder: Path, name: str, dtype: np.dtype[Any], counts: dict[str, int]) -> Split:
    # a mode "r" map costs no memory of its own; asarray: indexing the memmap class itself is slower
    tokens = np.asarray(np.memmap(folder / f"{name}.bin", dtype, "r", shape=(counts["tokens"],)))
    starts = np.fromfile(folder / f"{name}.starts", np.int64)
    if not len(starts) or starts[-1] != counts["tokens"] - 1:
        raise ValueError(f"{name}.starts does not fit {name}.bin")
    return Split(
        name, tokens, starts, counts["text_bytes"], counts["documents"], counts["unknown"], counts["synthetic"]
    )

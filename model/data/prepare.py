"""Prepare a corpus: split it by document and tokenize it, once per machine, into files that workers map into memory.

A split is one stream of token ids with an end token before each document and after the last one: `0 d1 0 d2 ... 0`.
Each id after the first is a target exactly once.
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

FORMAT = 1  # to be increased when the same text would be prepared differently
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, eq=False)
class Split:
    """The token stream of one split, mapped from its file."""

    name: str
    """train, val or test."""
    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    """Token ids, (n_targets + 1,)."""
    starts: NDArray[np.int64]
    """Position of the end token before each document, then of the last end token, (n_documents + 1,)."""
    text_bytes: int
    """UTF-8 bytes of the documents, synthetic documents not counted."""
    n_documents: int
    """Number of documents, synthetic documents included."""
    n_unknown: int
    """Number of tokens that stand for unknown characters."""
    n_synthetic: int = 0
    """Number of synthetic documents, which are the last ones."""

    @property
    def n_targets(self) -> int:
        """Number of tokens that are predicted: all but the first."""
        return len(self.tokens) - 1

    @property
    def real_tokens(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Token stream of the documents that are not synthetic."""
        return self.tokens[: self.starts[self.n_documents - self.n_synthetic] + 1]


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A prepared corpus on disk. Equal hashes mean equal text, splits and tokenizer."""

    folder: Path
    """Folder in the cache that holds the files."""
    hash: str
    """SHA-256 of all that training depends on, in hexadecimal."""
    vocab_size: int
    """Number of token ids, the end token included."""
    splits: dict[str, Split]
    """Splits by name: train, val and test."""

    def vocabulary(self) -> Vocabulary:
        """Return the trained tokenizer that maps text to the ids."""
        return load_vocabulary((self.folder / "tokenizer.json").read_text("utf-8"))


def bits_per_byte(nats: float, split: Split) -> float:
    """Return bits per UTF-8 byte of the split's text for a mean loss in nats per target.

    Each unknown character costs a choice among all 1,114,112 code points in addition, so that a tokenizer does not
    gain from unknown characters.
    """
    bits = nats * split.n_targets / math.log(2) + split.n_unknown * math.log2(sys.maxunicode + 1)
    return bits / split.text_bytes


def prepare(corpus: Corpus, tokenizer: Tokenizer, progress: Progress | None = None) -> PreparedData:
    """Return the prepared data of a corpus, prepared now unless the cache contains it.

    progress: callback that receives the progress of the preparation.

    Raises:
        ConfigError: the corpus cannot be read or is too small, or its files in the cache are damaged.
        CacheError: the cache cannot be written to.
    """
    folder = cache_root() / f"{corpus.name}-{_cache_key(corpus, tokenizer)[:12]}"
    if not folder.exists():
        try:
            with locked(folder):
                if not folder.exists():  # another process may have prepared it in the meantime
                    _prepare_folder(folder, corpus, tokenizer, progress or (lambda message, fraction: None))
        except OSError as error:
            raise CacheError(
                f"data: cannot write in {folder.parent}: {error.strerror or error}; "
                "set HPO_CACHE to a folder that can be written to"
            ) from None
    return _open_prepared(folder)


def list_prepared() -> list[dict[str, Any]]:
    """Return the content of meta.json of each prepared corpus in the cache, with its `folder`."""
    paths = sorted(cache_root().glob("*/meta.json"))
    return [json.loads(path.read_text("utf-8")) | {"folder": str(path.parent)} for path in paths]


def stderr_progress(delay_s: float = 1.0) -> Progress:
    """Return a progress callback that prints to stderr once the work has taken longer than `delay_s` seconds."""
    start = time.monotonic()
    last_line = ""

    def show(message: str, fraction: float) -> None:
        nonlocal last_line
        line = f"{message}: {fraction:.0%}"
        if time.monotonic() - start > delay_s and line != last_line:
            print(line, file=sys.stderr, flush=True)
            last_line = line

    return show


def _cache_key(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Return a hash of the settings and of the source files, which is fast enough to compute at every start."""
    fields = {"format": FORMAT, "corpus": corpus.preparation_fields(), "tokenizer": tokenizer.model_dump()}
    key = sha256(json.dumps(fields, sort_keys=True).encode())
    for path in corpus.files():
        key.update(file_sha256(path))
    return key.hexdigest()


def _prepare_folder(folder: Path, corpus: Corpus, tokenizer: Tokenizer, progress: Progress) -> None:
    progress(f"reading {corpus.name}", 0.0)
    documents, n_duplicates = distinct_documents(corpus)
    splits = split_documents(documents, corpus)
    progress(f"training the {tokenizer.name} tokenizer", 0.0)
    vocabulary = tokenizer.train(splits["train"])
    meta = {
        "name": corpus.name,
        "vocab_size": vocabulary.vocab_size,
        "duplicates_removed": n_duplicates,
        "corpus": corpus.preparation_fields(),
        "tokenizer": tokenizer.model_dump(),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "tokenizers")}
        | {"python": sys.version.split()[0], "format": str(FORMAT)},
    }
    # This process holds the lock, so a part that already exists belongs to a dead process.
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        meta |= _write_files(part, splits, vocabulary, corpus, progress)
        (part / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", "utf-8")
        part.rename(folder)
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        size = sum(count_utf8_bytes(texts) for texts in splits.values()) * token_dtype(vocabulary.vocab_size).itemsize
        raise CacheError(
            f"data: {str(error.strerror).lower()} preparing {corpus.name} under {folder.parent}; "
            f"needs up to {size * (1 + corpus.synthetic) / 1e6:.1f} MB; set HPO_CACHE to a folder with room"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _data_hash(splits: Documents, synthetic: bytes, vocabulary: Vocabulary, corpus: Corpus) -> str:
    """Return a hash of all that training depends on: the documents of each split, the tokenizer, the split fields."""
    parameters = corpus.model_dump(include={"val_fraction", "test_fraction", "split_seed", "max_documents"})
    content = sha256(json.dumps([FORMAT, parameters], sort_keys=True).encode())
    content.update(vocabulary.to_json().encode())
    for name in SPLITS:
        content.update(f"\n{name} {len(splits[name])}\n".encode())
        for text in splits[name]:
            content.update(sha256(text.encode()).digest())
    content.update(synthetic)
    return content.hexdigest()


def _write_files(
    folder: Path, splits: Documents, vocabulary: Vocabulary, corpus: Corpus, progress: Progress
) -> dict[str, Any]:
    """Write all files but meta.json; return the entries of meta.json that are known only now."""
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
        # a power failure can leave incomplete files
        raise ConfigError(f"data: damaged: {folder}: {error}; delete the folder and run again") from None
    return PreparedData(folder, meta["hash"], meta["vocab_size"], splits)


def _map_split(folder: Path, name: str, dtype: np.dtype[Any], counts: dict[str, int]) -> Split:
    # Mode "r" shares memory with other processes. asarray, because indexing the memmap class itself is slower.
    tokens = np.asarray(np.memmap(folder / f"{name}.bin", dtype, "r", shape=(counts["tokens"],)))
    starts = np.fromfile(folder / f"{name}.starts", np.int64)
    if not len(starts) or starts[-1] != counts["tokens"] - 1:
        raise ValueError(f"{name}.starts does not fit {name}.bin")
    return Split(
        name, tokens, starts, counts["text_bytes"], counts["documents"], counts["unknown"], counts["synthetic"]
    )

"""Prepare a corpus: split it by document and tokenize it, once per machine, into files that workers map into memory.

A split is one stream of token ids with an end token before each document and after the last one: `0 d1 0 d2 ... 0`.
Each id after the first is a target exactly once.
"""

import errno
import importlib.metadata
import json
import shutil
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from model.cache import cache_root, fsync, locked
from model.data.corpus import Corpus
from model.data.prepared import PreparedData, open_prepared, open_undamaged, write_meta
from model.data.split import SPLITS, Documents, distinct_documents, split_documents
from model.data.text_files import file_sha256
from model.data.token_files import Progress, add_synthetic, count_utf8_bytes, token_dtype, write_split
from model.data.tokenizer import Tokenizer, Vocabulary
from model.errors import CacheError, ConfigError

FORMAT = 1  # to be increased when the same text would be prepared differently
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(corpus: Corpus, tokenizer: Tokenizer, progress: Progress | None = None) -> PreparedData:
    """Return the prepared data of a corpus, prepared now unless the cache contains it undamaged.

    progress: callback that receives the progress of the preparation.

    Raises:
        ConfigError: the corpus cannot be read or is too small.
        CacheError: the cache cannot be written to.
    """
    folder = cache_root() / f"{corpus.name}-{_cache_key(corpus, tokenizer)[:12]}"
    if (data := open_undamaged(folder)) is not None:
        return data
    try:
        with locked(folder):
            if (data := open_undamaged(folder)) is not None:  # another process has prepared it in the meantime
                return data
            _set_aside(folder)
            _prepare_folder(folder, corpus, tokenizer, progress or (lambda message, fraction: None))
            return open_prepared(folder)
    except MemoryError:
        raise ConfigError(f"data: {corpus.name} does not fit into memory; use fewer or smaller files") from None
    except OSError as error:
        raise CacheError(
            f"data: cannot write in {folder.parent}: {error.strerror or error}; "
            "set HPO_CACHE to a folder that can be written to"
        ) from None


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
    documents, rows = distinct_documents(corpus)
    splits = split_documents(documents, corpus)
    progress(f"training the {tokenizer.name} tokenizer", 0.0)
    vocabulary = tokenizer.train(splits["train"])
    meta = {
        "name": corpus.name,
        "vocab_size": vocabulary.vocab_size,
        "duplicates_removed": rows.repeated,
        "rows": rows.as_dict() | {"documents": sum(map(len, splits.values()))},
        "corpus": corpus.preparation_fields(),
        "tokenizer": tokenizer.model_dump(),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "tokenizers")}
        | {"python": sys.version.split()[0], "format": str(FORMAT)},
    }
    # This process holds the lock, so a part that already exists was left by a process that was killed.
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        meta |= _write_files(part, splits, vocabulary, corpus, progress)
        write_meta(part, meta)
        for path in (*part.iterdir(), part):
            fsync(path)
        part.rename(folder)
        fsync(folder.parent)
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        size = sum(count_utf8_bytes(texts) for texts in splits.values()) * token_dtype(vocabulary.vocab_size).itemsize
        raise CacheError(
            f"data: {str(error.strerror).lower()} preparing {corpus.name} under {folder.parent}; "
            f"needs up to {size * (1 + corpus.synthetic) / 1e6:.1f} MB; set HPO_CACHE to a folder with room",
            round(size * (1 + corpus.synthetic)),
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


def _set_aside(folder: Path) -> None:
    """Remove a damaged folder. Processes that have mapped its files keep them.

    Raises:
        OSError: the cache cannot be written to.
    """
    if not folder.exists():
        return
    trash = folder.with_name(f".{folder.name}.damaged")
    shutil.rmtree(trash, ignore_errors=True)
    folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)

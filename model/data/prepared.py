"""Prepared data in the cache: open them, list them, and compare their files with the checksums in meta.json."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.cache import cache_root
from model.data.text_files import file_sha256
from model.data.token_files import token_dtype
from model.data.tokenizer import Vocabulary, load_vocabulary
from model.errors import ConfigError

META = "meta.json"

_log = logging.getLogger(__name__)


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
    rows: dict[str, int] = field(default_factory=dict)
    """What became of the rows of the source, as `RowCounts.as_dict` says; empty if version 0.1 prepared it."""

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


def list_prepared() -> list[dict[str, Any]]:
    """Return the content of meta.json of each prepared corpus in the cache, with its `folder`; no damaged ones."""
    found = []
    for path in sorted(cache_root().glob("*/meta.json")):
        try:
            found.append(read_meta(path.parent) | {"folder": str(path.parent)})
        except DamagedData as error:
            _log.warning("%s; the next run that uses it prepares it again", error)
    return found


def open_undamaged(folder: Path) -> PreparedData | None:
    """Open prepared data; return None if there are none, or if they are damaged."""
    if not folder.exists():
        return None
    try:
        return open_prepared(folder)
    except DamagedData as error:
        _log.warning("%s; it is prepared again", error)
        return None


def open_prepared(folder: Path) -> PreparedData:
    """Open prepared data after comparing every file with its checksum.

    The files are smaller than the text, and `_cache_key` reads the text at every start, too.

    Raises:
        DamagedData: a file is missing, or is not what was prepared.
    """
    meta = read_meta(folder)
    try:
        for name, checksum in meta.get("files", {}).items():  # version 0.1 wrote no checksums
            if file_sha256(folder / name).hex() != checksum:
                raise ValueError(f"{name} has been changed")
        dtype = token_dtype(meta["vocab_size"])
        splits = {name: _map_split(folder, name, dtype, counts) for name, counts in meta["splits"].items()}
        return PreparedData(folder, meta["hash"], meta["vocab_size"], splits, meta.get("rows", {}))
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:  # ConfigError is a ValueError
        raise DamagedData(f"data: damaged: {folder}: {error}") from None


def _map_split(folder: Path, name: str, dtype: np.dtype[Any], counts: dict[str, int]) -> Split:
    # Mode "r" shares memory with other processes. asarray, because indexing the memmap class itself is slower.
    tokens = np.asarray(np.memmap(folder / f"{name}.bin", dtype, "r", shape=(counts["tokens"],)))
    starts = np.fromfile(folder / f"{name}.starts", np.int64)
    if not len(starts) or starts[-1] != counts["tokens"] - 1:
        raise ValueError(f"{name}.starts does not fit {name}.bin")
    return Split(
        name, tokens, starts, counts["text_bytes"], counts["documents"], counts["unknown"], counts["synthetic"]
    )


class DamagedData(ConfigError):
    """Files of prepared data in the cache are missing or damaged."""


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json with the checksum of each file in the folder, and of itself."""
    meta = meta | {"files": {path.name: file_sha256(path).hex() for path in sorted(folder.iterdir())}}
    meta |= {"checksum": checksum_of(meta)}
    (folder / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the content of meta.json.

    Raises:
        DamagedData: it cannot be read, or does not have its checksum. Version 0.1 wrote no checksum.
    """
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        for key in ("name", "hash", "vocab_size", "splits", "tokenizer"):
            if key not in meta:
                raise ValueError(f"{META} has no {key}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DamagedData(f"data: damaged: {folder}: {error}") from None
    checksum = meta.pop("checksum", None)
    if ("files" in meta or checksum) and checksum != checksum_of(meta):
        raise DamagedData(f"data: damaged: {folder}: {META} has been changed")
    return dict(meta)


def checksum_of(meta: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values."""
    return sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()

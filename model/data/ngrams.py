"""Anchors: what a unigram and a bigram table, counted on the training split, lose on the validation split."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.cache import write_whole
from model.data.prepare import PreparedData, bits_per_byte
from model.errors import ConfigError

# V tokens of the vocabulary, N targets of a split

Int = NDArray[np.int64]
Float = NDArray[np.float64]


def anchors(prepared: PreparedData) -> dict[str, float]:
    """Return `unigram` and `bigram` in nats per target token, and both in bits per byte (`unigram_bpb`, ...).

    Every target of the validation split counts once, as for val_loss.
    """
    path = prepared.folder / "anchors.json"
    with suppress(OSError, ValueError):  # not there, or cut short: they are counted again
        saved: dict[str, float] = json.loads(path.read_text("utf-8"))
        return saved
    found = _compute_anchors(prepared)
    _save_anchors(path, found)
    return found


def _compute_anchors(prepared: PreparedData) -> dict[str, float]:
    # synthetic documents are left out, so that the anchors of a text do not depend on them
    train = prepared.splits["train"].real.astype(np.int64)
    val = prepared.splits["val"].tokens.astype(np.int64)
    unigram = unigram_probabilities(train, prepared.vocab_size)
    bigram = bigram_probabilities(train, unigram, val[:-1], val[1:])
    nats = {
        "unigram": float(-np.log(unigram[val[1:]]).mean()),
        "bigram": float(-np.log(bigram).mean()),
    }
    return nats | {f"{name}_bpb": bits_per_byte(loss, prepared.splits["val"]) for name, loss in nats.items()}


def unigram_probabilities(train: Int, vocab_size: int) -> Float:
    """Return p(w), (V,), of the targets in `train`, one added to every count."""
    counts = np.bincount(train[1:], minlength=vocab_size) + 1
    return counts / counts.sum()


def bigram_probabilities(train: Int, unigram: Float, before: Int, target: Int) -> Float:
    """Return p(target | before), (N,), by Witten and Bell: the unigram weighs as much as there are followers.

    p(w | h) = (c(h, w) + t(h) p(w)) / (c(h) + t(h)), t(h) the number of distinct followers of h in `train`.
    Source: Witten and Bell 1991, doi:10.1109/18.87000; as in Chen and Goodman 1998, section 2.4.
    """
    V = len(unigram)
    # one code a pair: a V x V table of a 16k vocabulary would take 2 GB
    pairs, pair_counts = np.unique(train[:-1] * V + train[1:], return_counts=True)
    followers = np.bincount(pairs // V, minlength=V)[before]  # (N,) t(h)
    seen = np.bincount(train[:-1], minlength=V)[before]  # (N,) c(h)
    code = before * V + target
    at = np.minimum(np.searchsorted(pairs, code), len(pairs) - 1)
    together = np.where(pairs[at] == code, pair_counts[at], 0)  # (N,) c(h, w)
    p = unigram[target]
    weight = np.maximum(seen + followers, 1)
    return np.where(seen > 0, (together + followers * p) / weight, p)


def _save_anchors(path: Path, found: dict[str, float]) -> None:
    with suppress(ConfigError):  # a read-only cache: they are counted again next time
        write_whole(path, [json.dumps(found, indent=1).encode()])

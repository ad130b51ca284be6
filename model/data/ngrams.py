"""Anchors: the validation losses of a unigram and a bigram model, as reference points for a training run.

Both models are counted on the training split. Shapes: V tokens of the vocabulary, N targets of the validation split.
"""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.cache import write_whole
from model.data.prepared import PreparedData, bits_per_byte
from model.errors import ConfigError

Int = NDArray[np.int64]
Float = NDArray[np.float64]


def anchors(prepared: PreparedData) -> dict[str, float]:
    """Return the anchors: `unigram` and `bigram` in nats per target token, `unigram_bpb` and `bigram_bpb` in bits.

    The bits are per UTF-8 byte. Every target of the validation split counts once, as for val_loss. The anchors are
    saved beside the prepared data.
    """
    path = prepared.folder / "anchors.json"
    with suppress(OSError, ValueError, LookupError, TypeError):  # a missing or damaged file is written again
        saved = json.loads(path.read_text("utf-8"))
        return {name: float(saved[name]) for name in ("unigram", "bigram", "unigram_bpb", "bigram_bpb")}
    losses = _compute_anchors(prepared)
    _save_anchors(path, losses)
    return losses


def _compute_anchors(prepared: PreparedData) -> dict[str, float]:
    # Synthetic documents are left out, so that the anchors of a text do not depend on them.
    train = prepared.splits["train"].real_tokens.astype(np.int64)
    val = prepared.splits["val"].tokens.astype(np.int64)
    unigram = unigram_probabilities(train, prepared.vocab_size)
    bigram = bigram_probabilities(train, unigram, val[:-1], val[1:])
    nats = {
        "unigram": float(-np.log(unigram[val[1:]]).mean()),
        "bigram": float(-np.log(bigram).mean()),
    }
    return nats | {f"{name}_bpb": bits_per_byte(loss, prepared.splits["val"]) for name, loss in nats.items()}


def unigram_probabilities(train: Int, vocab_size: int) -> Float:
    """Return p(w), (V,), of the targets in `train`, with add-one smoothing."""
    counts = np.bincount(train[1:], minlength=vocab_size) + 1
    return counts / counts.sum()


def bigram_probabilities(train: Int, unigram: Float, before: Int, target: Int) -> Float:
    """Return p(target | before), (N,), with Witten-Bell smoothing.

    p(w | h) = (c(h, w) + t(h) p(w)) / (c(h) + t(h)), where t(h) is the number of distinct successors of h in `train`.
    Source: Witten and Bell 1991, doi:10.1109/18.87000; as in Chen and Goodman 1998, section 2.4.

    unigram: p(w), (V,). before, target: pairs of adjacent tokens, (N,) each.
    """
    V = len(unigram)
    # One code per pair: a V x V table of a vocabulary of 16k tokens would need 2 GB.
    pairs, pair_counts = np.unique(train[:-1] * V + train[1:], return_counts=True)
    successors = np.bincount(pairs // V, minlength=V)[before]  # (N,) t(h)
    count = np.bincount(train[:-1], minlength=V)[before]  # (N,) c(h)
    code = before * V + target
    index = np.minimum(np.searchsorted(pairs, code), len(pairs) - 1)
    pair_count = np.where(pairs[index] == code, pair_counts[index], 0)  # (N,) c(h, w)
    p = unigram[target]
    weight = np.maximum(count + successors, 1)
    return np.where(count > 0, (pair_count + successors * p) / weight, p)


def _save_anchors(path: Path, losses: dict[str, float]) -> None:
    with suppress(ConfigError):  # the cache is read-only: the anchors are computed again next time
        write_whole(path, [json.dumps(losses, indent=1).encode()])

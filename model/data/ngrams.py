"""Anchors: the validation losses of a unigram, a bigram and a trigram model, as reference points for a training run.

All models are counted on the training split. Shapes: V tokens of the vocabulary, N targets of the validation split, G
distinct n-grams of the training split.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.cache import write_whole
from model.data.prepared import PreparedData, bits_per_byte, checksum_of
from model.errors import ConfigError

Int = NDArray[np.int64]
Float = NDArray[np.float64]

MODELS = ("unigram", "bigram", "trigram")
ANCHORS = (*MODELS, *(f"{name}_bpb" for name in MODELS))
# Trigrams are counted in the first tokens only, because sorting this many takes about 3 s and 1 GB.
TRIGRAM_TOKENS = 2**24


def anchors(prepared: PreparedData) -> dict[str, float]:
    """Return the anchors: unigram, bigram and trigram loss in nats per target token, and with `_bpb` in bits.

    The bits are per UTF-8 byte. Every target of the validation split counts once, as for val_loss. The trigram model is
    counted on the first TRIGRAM_TOKENS of the training split. The anchors are saved beside the prepared data, with a
    checksum. A missing or damaged file, or one of an earlier version, is written again.
    """
    path = prepared.folder / "anchors.json"
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        saved = json.loads(path.read_text("utf-8"))
        if saved.pop("checksum") == checksum_of({"data": prepared.hash, **saved}):
            return {name: float(saved[name]) for name in ANCHORS}
    losses = _compute_anchors(prepared)
    _save_anchors(path, losses | {"checksum": checksum_of({"data": prepared.hash, **losses})})
    return losses


def _compute_anchors(prepared: PreparedData) -> dict[str, float]:
    # Synthetic documents are left out, so that the anchors of a text do not depend on them.
    train = prepared.splits["train"].real_tokens.astype(np.int64)
    val = prepared.splits["val"].tokens.astype(np.int64)
    unigram = unigram_probabilities(train, prepared.vocab_size)
    bigram = bigram_probabilities(train, unigram, val[:-1], val[1:])
    trigram = kneser_ney_probabilities(train[:TRIGRAM_TOKENS], val, prepared.vocab_size, order=3)
    probabilities = dict(zip(MODELS, (unigram[val[1:]], bigram, trigram), strict=True))
    nats = {name: float(-np.log(p).mean()) for name, p in probabilities.items()}
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


def kneser_ney_probabilities(train: Int, val: Int, vocab_size: int, order: int) -> Float:
    """Return p(w | the order - 1 tokens before w), (N,), of each target w in `val`, with Kneser-Ney smoothing.

    p(w | h) = (max(c(h w) - D, 0) + D t(h) p(w | h')) / c(h), where t(h) is the number of distinct successors of h in
    `train`, and h' is h without its first token. c counts occurrences for n = `order`, and below that the distinct
    tokens before the n-gram. D = n1 / (n1 + 2 n2), where n1 and n2 n-grams have count 1 and 2. An unseen h leaves
    p(w | h'). Below the unigrams, p is uniform.
    Source: Kneser and Ney 1995, doi:10.1109/ICASSP.1995.479394; interpolated as in Chen and Goodman 1998, section
    4.1.6.

    train: token stream. val: token stream, (N + 1,), whose first token is no target.
    """
    V = vocab_size
    p = np.full(len(val) - 1, 1 / V)
    distinct = [np.unique(_codes(train, n, V)) for n in range(1, order)]
    grams, counts = np.unique(_codes(train, order, V), return_counts=True)
    for n, longer in enumerate([*distinct[1:], grams], 1):
        p = _interpolated(*np.unique(longer % V**n, return_counts=True), V, _codes(val, n, V), p)
    return _interpolated(grams, counts, V, _codes(val, order, V), p)


def _codes(stream: Int, n: int, V: int) -> Int:
    """Return one code per n-gram of a stream: its tokens as the digits of a number in base V."""
    if len(stream) < n:
        return np.zeros(0, np.int64)
    code = np.zeros(len(stream) - n + 1, np.int64)
    for i in range(n):
        code = code * V + stream[i : len(stream) - n + 1 + i]
    return code


def _interpolated(grams: Int, counts: Int, V: int, code: Int, shorter: Float) -> Float:
    """Return the probability of each target after one token more.

    grams, counts: codes of the n-grams of the training split, sorted, and their counts, (G,) each. code: of the n-grams
    of the validation split. shorter: probabilities after one token less, (N,).
    """
    code = code[-len(shorter) :]  # unigrams: the first token is no target
    if not len(grams) or not len(code):
        return shorter
    n1, n2 = ((counts == count).sum() for count in (1, 2))
    discount = n1 / (n1 + 2 * n2) if n1 else 0.5  # without n-grams of count 1, the estimate would leave out unseen ones
    histories, first, successors = np.unique(grams // V, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, first)
    index, at = _find(grams, code), _find(histories, code // V)
    count = np.where(grams[index] == code, counts[index], 0)
    # The first targets have too few tokens before them for a longer n-gram, and keep the probability of a shorter one.
    start, rest = np.split(shorter, [len(shorter) - len(code)])
    p = (np.maximum(count - discount, 0) + discount * successors[at] * rest) / totals[at]
    return np.concatenate([start, np.where(histories[at] == code // V, p, rest)])


def _find(ordered: Int, codes: Int) -> Int:
    """Return the index of each code in a sorted array, or of some element if the array does not hold the code."""
    return np.minimum(np.searchsorted(ordered, codes), len(ordered) - 1)


def _save_anchors(path: Path, content: dict[str, Any]) -> None:
    with suppress(ConfigError):  # the cache is read-only: the anchors are computed again next time
        write_whole(path, [json.dumps(content, indent=1).encode()])

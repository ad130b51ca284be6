import json
import math
import os
import time
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from model.data.corpus import HackerNews, Lines
from model.data.ngrams import anchors, bigram_probabilities, unigram_probabilities
from model.data.prepare import prepare
from model.data.prepared import bits_per_byte
from model.data.tokenizer import BPE, Bytes, Chars


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{i} cats and {i * i} dogs\n" for i in range(99)) + "é ü\nß\n")
    return Lines(path=str(tmp_path / "a.txt"), val_fraction=0.2)


def slow_anchors(train, val, V):
    """Compute both models the slow way, with dictionaries."""
    unigram = dict.fromkeys(range(V), 1)
    for w in train[1:]:
        unigram[w] += 1
    p1 = {w: c / sum(unigram.values()) for w, c in unigram.items()}
    follows = defaultdict(Counter)
    for h, w in pairwise(train):
        follows[h][w] += 1

    def p2(h, w):
        c, t = sum(follows[h].values()), len(follows[h])
        return (follows[h][w] + t * p1[w]) / (c + t) if c else p1[w]

    pairs = list(pairwise(val))
    return {
        "unigram": -sum(math.log(p1[w]) for _, w in pairs) / len(pairs),
        "bigram": -sum(math.log(p2(h, w)) for h, w in pairs) / len(pairs),
    }


@pytest.mark.parametrize("tokenizer", [Bytes(), Chars(), BPE(vocab_size=300)], ids=lambda t: t.name)
def test_anchors_equal_the_formulas_written_out(corpus, tokenizer):
    prepared = prepare(corpus, tokenizer)
    train, val = (prepared.splits[name].tokens.tolist() for name in ("train", "val"))
    found = anchors(prepared)
    for name, expected in slow_anchors(train, val, prepared.vocab_size).items():
        assert found[name] == pytest.approx(expected, rel=1e-12)
        assert found[f"{name}_bpb"] == bits_per_byte(found[name], prepared.splits["val"])


def test_distributions_sum_to_one_after_seen_and_unseen_tokens():
    V = 11
    train = np.random.default_rng(0).integers(0, V - 2, 60)
    unigram = unigram_probabilities(train, V)
    assert unigram.sum() == pytest.approx(1)
    for before in range(V):
        p = bigram_probabilities(train, unigram, np.full(V, before), np.arange(V))
        assert (p > 0).all()
        assert p.sum() == pytest.approx(1)


def test_anchors_are_kept_beside_the_data(corpus):
    prepared = prepare(corpus, Bytes())
    found = anchors(prepared)
    path = prepared.folder / "anchors.json"
    assert json.loads(path.read_text()) == found == anchors(prepared)
    saved = dict.fromkeys(found, 1.0)
    path.write_text(json.dumps(saved))
    assert anchors(prepared) == saved


@pytest.mark.parametrize("content", [b"", b"{}", b"5", b'{"unigram": []}', b"\xff\xfe", b"[[["])
def test_damaged_anchors_are_computed_again(corpus, content):
    prepared = prepare(corpus, Bytes())
    found = anchors(prepared)
    (prepared.folder / "anchors.json").write_bytes(content)
    assert anchors(prepared) == found == json.loads((prepared.folder / "anchors.json").read_text())


def test_a_folder_that_cannot_be_written_does_no_harm(corpus):
    prepared = prepare(corpus, Bytes())
    (prepared.folder / "gone").mkdir()
    moved = prepared.folder.rename(prepared.folder.with_name("moved"))
    prepared.folder.write_text("a file, so nothing can be written below it")
    assert anchors(prepared)["bigram"] < anchors(prepared)["unigram"]
    assert not (moved / "anchors.json").exists()


def test_millions_of_tokens_and_16k_ids_take_seconds():
    rng = np.random.default_rng(0)
    train = (rng.pareto(1.0, 3_000_000) * 3).astype(np.int64) % 16_384
    start = time.monotonic()
    unigram = unigram_probabilities(train, 16_384)
    bigram_probabilities(train, unigram, train[:-1], train[1:])
    assert time.monotonic() - start < 10


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("HPO_DATA"), reason="HPO_DATA is not set")
def test_hacker_news_anchors_are_those_measured_elsewhere():
    # mainrun's unit: nats per character of the titles joined by "<eos>", whose 5 characters count.
    # 1.716 and 1.327 were measured with a space put before each title: 3 % and 1 % better on equal samples.
    corpus = HackerNews(max_documents=100_000, val_fraction=0.1, test_fraction=0)
    prepared = prepare(corpus, BPE(vocab_size=16_384))
    val = prepared.splits["val"]
    characters = len(prepared.vocabulary().decode(val.tokens)) + 5 * val.n_documents
    found = anchors(prepared)
    assert found["unigram"] * val.n_targets / characters == pytest.approx(1.716, rel=0.04)
    assert found["bigram"] * val.n_targets / characters == pytest.approx(1.327, rel=0.03)

from collections import Counter, defaultdict
from itertools import chain, pairwise

import numpy as np
import pytest

from hpo.commands import data
from model.data.corpus import Lines
from model.data.ngrams import anchors
from model.data.prepare import prepare
from model.data.prepared import list_prepared
from model.data.synthetic import NGramModel
from model.data.tokenizer import BPE, END, Bytes, Chars
from tests.support.tiny import text


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.txt").write_text(text(lines=300), "utf-8")
    return Lines(path=str(tmp_path / "a.txt"))


def documents(tokens):
    """Return the documents of a stream as tuples."""
    ends = np.flatnonzero(np.asarray(tokens) == END)
    return [tuple(np.asarray(tokens)[a + 1 : b].tolist()) for a, b in pairwise(ends)]


def grams(document, n):
    """Return the n-grams of a document, end tokens before it and one after."""
    padded = (END,) * (n - 1) + tuple(document) + (END,)
    return {padded[i : i + n] for i in range(len(padded) - n + 1)}


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("tokenizer", [Bytes(), BPE(vocab_size=400)], ids=lambda t: t.name)
def test_every_ngram_of_a_synthetic_document_is_one_of_training(corpus, tokenizer, n):
    split = prepare(corpus.model_copy(update={"synthetic": 2.0, "synthetic_order": n}), tokenizer).splits["train"]
    real, made_up = documents(split.real_tokens), documents(split.tokens)[split.n_documents - split.n_synthetic :]
    assert (len(real), len(made_up)) == (split.n_documents - split.n_synthetic, 2 * len(real))
    known = set().union(*(grams(d, n) for d in real))
    assert set().union(*(grams(d, n) for d in made_up)) <= known
    longer = set().union(*(grams(d, n + 1) for d in real))
    assert set().union(*(grams(d, n + 1) for d in made_up)) - longer, "whole documents were copied"
    assert max(map(len, made_up)) <= max(map(len, real))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_next_token_is_as_frequent_as_in_training(n):
    rng = np.random.default_rng(1)
    real = [rng.integers(1, 4, rng.integers(1, 8)).tolist() for _ in range(60)] + [[1, 2, 3] * 60]
    model = NGramModel(np.array([END, *chain.from_iterable((*d, END) for d in real)], np.uint16), n)
    made_up = list(model.sample(20_000, np.random.default_rng(0)))
    counts = [defaultdict(Counter), defaultdict(Counter)]
    for found, some in zip(counts, (real, made_up), strict=True):
        for document in some:
            padded = [END] * (n - 1) + list(document) + [END]
            for at in range(n - 1, len(padded)):
                found[tuple(padded[at - n + 1 : at])][padded[at]] += 1
    chi, freedom = 0.0, 0
    for context, expected in counts[0].items():
        total, drawn = sum(expected.values()), sum(counts[1][context].values())
        for token, count in expected.items():
            wanted = count / total * drawn
            if wanted > 20 and count < total:
                chi, freedom = chi + (counts[1][context][token] - wanted) ** 2 / wanted, freedom + 1
    assert freedom > 3 * n
    assert chi < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


def test_synthetic_documents_leave_everything_else_as_it_is(corpus):
    plain = prepare(corpus, BPE(vocab_size=400))
    more = prepare(corpus.model_copy(update={"synthetic": 0.5}), BPE(vocab_size=400))
    for name in ("val.bin", "val.starts", "test.bin", "test.starts", "tokenizer.json"):
        assert (plain.folder / name).read_bytes() == (more.folder / name).read_bytes()
    a, b = plain.splits["train"], more.splits["train"]
    np.testing.assert_array_equal(a.tokens, b.real_tokens)
    np.testing.assert_array_equal(np.flatnonzero(b.tokens == END), b.starts)
    assert (b.n_synthetic, b.n_documents) == (round(0.5 * a.n_documents), a.n_documents + b.n_synthetic)
    assert a.text_bytes == b.text_bytes
    assert anchors(plain) == anchors(more)


def test_what_synthetic_documents_depend_on_is_in_the_hash(corpus):
    changes = [{}, {"synthetic": 0.5}, {"synthetic": 1.0}, {"synthetic": 1.0, "synthetic_order": 2}]
    found = [prepare(corpus.model_copy(update=change), Bytes()) for change in changes]
    assert len({p.hash for p in found}) == len({p.folder for p in found}) == len(found)


def test_the_same_again_draws_the_same_documents(corpus, tmp_path, monkeypatch):
    more = corpus.model_copy(update={"synthetic": 0.5})
    first = prepare(more, Chars())
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "another"))
    again = prepare(more, Chars())
    assert again.hash == first.hash
    np.testing.assert_array_equal(again.splits["train"].tokens, first.splits["train"].tokens)


def test_their_number_is_in_the_description_and_on_the_command_line(corpus, capsys):
    asked = [f"data.{key}={value}" for key, value in (("name", "lines"), ("path", corpus.path), ("synthetic", 0.1))]
    shown = data.training_documents(None, asked, 1)
    counts = list_prepared()[0]["splits"]["train"]
    assert counts["synthetic"] == 28 == round(0.1 * (counts["documents"] - 28))
    said = capsys.readouterr().err.splitlines()  # before the last line: progress, where the preparation takes long
    assert said[-1] == (
        f"the last 28 of {counts['documents']} documents are synthetic: sampled from a 3-gram model of the others"
    )
    assert len(shown) == 1
    assert data.prepare_dataset(None, asked)["train"]["synthetic"] == 28


def test_at_least_one_is_drawn(corpus):
    split = prepare(corpus.model_copy(update={"synthetic": 1e-6}), Bytes()).splits["train"]
    assert split.n_synthetic == 1

import json
import os
import shlex
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from hpo.runs.datasets import PreparedDatasets
from model.cache import locked
from model.config import TrainConfig
from model.data.corpus import Lines, Names, Table
from model.data.corpus_base import ORDER_FIELDS
from model.data.prepare import prepare, stderr_progress
from model.data.prepared import list_prepared
from model.data.split import split_documents
from model.data.tokenizer import BPE, END, Bytes, Chars
from model.errors import ConfigError
from model.seeds import derive

pytestmark = pytest.mark.usefixtures("cache")


def texts(prepared, name):
    split = prepared.splits[name]
    vocabulary = prepared.vocabulary()
    return [vocabulary.decode(split.tokens[a:b]) for a, b in pairwise(split.starts)]


@pytest.mark.parametrize("tokenizer", [Bytes(), Chars(), BPE(vocab_size=300)], ids=lambda t: t.name)
def test_every_document_is_in_exactly_one_split_and_is_read_back_whole(corpus, tokenizer):
    prepared = prepare(corpus.model_copy(update={"val_fraction": 0.1, "test_fraction": 0.2}), tokenizer)
    found = {name: texts(prepared, name) for name in ("train", "val", "test")}
    if tokenizer.name != "chars":
        assert sorted(chain.from_iterable(found.values())) == sorted(d for d in corpus.documents() if d)
    assert {name: len(documents) for name, documents in found.items()} == {"train": 140, "val": 20, "test": 40}
    assert not set(found["val"]) & set(found["train"])
    assert not set(found["test"]) & set(found["train"] + found["val"])


def test_streams_have_an_end_token_around_each_document_and_count_their_bytes(corpus):
    prepared = prepare(corpus, Bytes())
    for name, split in prepared.splits.items():
        assert split.tokens[0] == split.tokens[-1] == END
        np.testing.assert_array_equal(np.flatnonzero(split.tokens == END), split.starts)
        assert split.text_bytes == sum(len(text.encode()) for text in texts(prepared, name))
        assert split.n_targets == split.text_bytes + split.n_documents == len(split.tokens) - 1


def test_blank_documents_and_repeats_are_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\none\nthree\none\n")
    prepared = prepare(Lines(path=str(tmp_path / "a.txt")), Bytes())
    assert sum(split.n_documents for split in prepared.splits.values()) == 3
    assert list_prepared()[0]["duplicates_removed"] == 2


def test_max_documents_draws_distinct_ones(corpus):
    prepared = prepare(corpus.model_copy(update={"max_documents": 50}), Bytes())
    drawn = list(chain.from_iterable(texts(prepared, name) for name in prepared.splits))
    assert len(drawn) == len(set(drawn)) == 50
    assert set(drawn) != {f"word number {i} é" for i in range(50)}


def test_the_tokenizer_has_seen_the_training_text_only(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(chr(0x4E00 + i) for i in range(100)), "utf-8")
    prepared = prepare(Lines(path=str(tmp_path / "a.txt")), Chars())
    assert prepared.vocab_size == 2 + 92
    assert [prepared.splits[name].n_unknown for name in ("train", "val", "test")] == [0, 4, 4]


def test_large_vocabularies_are_stored_in_four_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(chr(i) for i in range(0x10000, 0x10000 + 80_000)), "utf-8")
    prepared = prepare(Lines(path=str(tmp_path / "a.txt")), Chars())
    assert prepared.vocab_size > 65_536
    assert prepared.splits["train"].tokens.dtype == np.uint32
    assert len(set(texts(prepared, "train"))) == 73_600


def test_one_changed_byte_changes_the_hash_and_a_copy_elsewhere_does_not(tmp_path, corpus):
    before = prepare(corpus, Bytes())
    shutil.copy(corpus.path, tmp_path / "copy.txt")
    assert prepare(Lines(path=str(tmp_path / "copy.txt")), Bytes()).hash == before.hash
    content = Path(corpus.path).read_bytes()
    Path(corpus.path).write_bytes(content.replace(b"number 7 ", b"number x "))
    after = prepare(corpus, Bytes())
    assert (after.hash != before.hash, after.folder != before.folder) == (True, True)


def test_every_field_that_changes_the_data_changes_the_hash(corpus):
    changes = [{}, {"val_fraction": 0.1}, {"test_fraction": 0.1}, {"split_seed": 1}, {"max_documents": 100}]
    found = [prepare(corpus.model_copy(update=change), Bytes()) for change in changes]
    found += [prepare(corpus, Chars()), prepare(corpus, BPE(vocab_size=260)), prepare(corpus, BPE(vocab_size=270))]
    assert len({p.hash for p in found}) == len({p.folder for p in found}) == len(found)


@pytest.mark.parametrize(
    "fields",
    [{"layout": "documents"}, {"drop_documents": 0.1}, {"shuffle_documents": True}, {"curriculum": "easy"}],
    ids=str,
)
def test_fields_that_only_order_the_training_share_the_prepared_data(corpus, fields):
    assert set(fields) <= ORDER_FIELDS
    before = prepare(corpus, Bytes())
    after = prepare(corpus.model_copy(update=fields), Bytes(), lambda *_: pytest.fail("prepared again"))
    assert (after.folder, after.hash) == (before.folder, before.hash)
    with_study = {TrainConfig(data=c, tokenizer=Bytes()) for c in (corpus, corpus.model_copy(update=fields))}
    corpora = PreparedDatasets()
    assert len({id(corpora.training_arguments(config)["prepared"]) for config in with_study}) == 1


def test_prepared_data_has_the_hash_it_always_had(corpus):
    """Compare with hashes that were recorded before corpora had more fields."""
    assert prepare(corpus, Bytes()).hash.startswith("37b1478f6a4e3e84")
    assert prepare(corpus, Chars()).hash.startswith("bec4c2b779286148")


def test_a_character_without_an_id_is_named_with_its_split(tmp_path, cache):
    (tmp_path / "a.txt").write_text("\n".join(["plain words", *(f"word {i}" for i in range(90)), "wörd"]), "utf-8")
    for seed in range(200):
        corpus = Lines(path=str(tmp_path / "a.txt"), split_seed=seed)
        documents = split_documents(list(corpus.documents()), corpus)
        if "wörd" in documents["val"]:
            break
    with pytest.raises(ConfigError) as caught:
        prepare(corpus, Chars(unknown=False))
    assert str(caught.value) == (
        "tokenizer.unknown: must be true where training text lacks a character, got false, and the character 'ö' "
        "(U+00F6) of the validation split is not in it; set tokenizer.unknown to true, or tokenizer.name to bytes or "
        "bpe"
    )
    assert [p for p in cache.iterdir() if p.is_dir()] == []
    assert prepare(corpus, Chars()).splits["val"].n_unknown == 1


def test_rows_without_text_and_repeats_are_counted(tmp_path):
    rows = [{"t": f"text {n % 80}"} for n in range(100)] + [{"t": ""}, {"t": None}, {"other": 1}, {"t": "  "}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = Table(path=str(tmp_path / "a.jsonl"), column="t")
    assert prepare(table, Bytes()).rows == {"read": 104, "missing": 4, "repeated": 20, "documents": 80}
    fewer = table.model_copy(update={"max_documents": 50})
    assert prepare(fewer, Bytes()).rows == {"read": 104, "missing": 4, "repeated": 20, "documents": 50}


def test_blank_lines_of_a_text_are_not_missing_rows(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"line {n}" for n in range(50)))
    assert prepare(Lines(path=str(tmp_path / "a.txt")), Bytes()).rows == {
        "read": 50,
        "missing": 0,
        "repeated": 0,
        "documents": 50,
    }


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_documents_are_refused(tmp_path, n, cache):
    (tmp_path / "a.txt").write_text("same\n" * 5 + "other\n" * (n - 1))
    with pytest.raises(ConfigError, match=f"data: needs at least 3 distinct documents .* got {n} from lines"):
        prepare(Lines(path=str(tmp_path / "a.txt")), Bytes())
    assert [p for p in cache.iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("n", range(3, 30))
def test_no_split_is_empty_however_small_the_corpus_and_large_the_fractions(tmp_path, n):
    (tmp_path / "a.txt").write_text("".join(f"{i}\n" for i in range(n)))
    for fraction in (0.0, 0.33):
        corpus = Lines(path=str(tmp_path / "a.txt"), val_fraction=fraction, test_fraction=fraction)
        assert all(split.n_documents for split in prepare(corpus, Bytes()).splits.values())


def test_half_a_surrogate_pair_is_reported(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"t": "a"}\n{"t": "\\ud800"}\n{"t": "b"}\n')
    with pytest.raises(ConfigError, match="data: document 2 holds a lone surrogate"):
        prepare(Table(path=str(tmp_path / "a.jsonl"), column="t"), Bytes())


def test_progress_goes_from_reading_to_the_last_token(corpus):
    said = []
    prepare(corpus, Bytes(), lambda message, fraction: said.append((message, fraction)))
    assert said[0] == ("reading lines", 0.0)
    assert said[-1] == ("tokenizing test", 1.0)


def test_progress_on_stderr_keeps_silent_for_the_first_second(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr("model.data.prepare.time.monotonic", lambda: now)
    show = stderr_progress()
    now = 100.9
    show("quick", 0.5)
    assert capsys.readouterr().err == ""
    now = 101.1
    show("slow", 0.5)
    assert capsys.readouterr().err == "slow: 50%\n"


def test_seeds_differ_by_label_and_never_change():
    assert derive(0, "data") == 5645879620718662389
    assert len({derive(seed, label) for seed in range(10) for label in ("data", "weights")}) == 20


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("HPO_DATA"), reason="HPO_DATA is not set")
def test_names_lose_their_repeats():
    splits = prepare(Names(), Chars()).splits
    assert sum(split.n_documents for split in splits.values()) == 29_494
    assert prepare(Names(), Chars(unknown=False)).vocab_size == 27


def test_the_command_that_shows_who_prepares_the_data_is_quoted_for_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("model.cache.SILENT_S", 0.1)
    path = tmp_path / "my cache;b" / "corpus"
    with ThreadPoolExecutor(1) as pool:
        with locked(path):
            waiting = pool.submit(lambda: locked(path).__enter__())
            while "waiting for" not in (said := capsys.readouterr().err):
                time.sleep(0.05)
        waiting.result(timeout=60)
    assert shlex.split(said.split("`")[1]) == ["fuser", str(path.parent / ".corpus.lock")]

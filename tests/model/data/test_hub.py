"""Test datasets of the Hub on small local folders that the datasets library can load."""

import json
import os
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from model.data.corpus import HackerNews, Hub
from model.data.prepare import prepare
from model.data.tokenizer import Bytes
from model.errors import ConfigError

pytestmark = pytest.mark.skipif(find_spec("datasets") is None, reason="needs the package datasets")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HPO_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "downloads"


def jsonl(path, rows):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture
def posts():
    jsonl("posts/train.jsonl", [{"text": f"dö{i}\nline", "n": i} for i in range(40)])
    jsonl("posts/validation.jsonl", [{"text": f"held out {i}", "n": i} for i in range(3)])
    return Hub(path="posts", revision="1")


def texts(corpus):
    """Return the documents that are not blank."""
    return [text for text in corpus.documents() if text]


def message(corpus):
    with pytest.raises(ConfigError) as caught:
        list(corpus.documents())
    return str(caught.value)


def test_documents_are_the_cells_of_the_column_in_the_order_of_the_data_set(posts):
    assert texts(posts) == [f"dö{i}\nline" for i in range(40)]
    assert texts(posts.model_copy(update={"split": "validation"})) == [f"held out {i}" for i in range(3)]


def test_parquet_reads_the_same():
    Path("posts").mkdir()
    pd.DataFrame({"id": [1, 2, 3], "title": ["a", "b", None]}).to_parquet("posts/train-00000-of-00001.parquet")
    assert texts(Hub(path="posts", revision="1", column="title")) == ["a", "b"]


def test_a_subset_is_a_configuration_of_the_data_set():
    jsonl("posts/en/train.jsonl", [{"text": "hello"}])
    jsonl("posts/fr/train.jsonl", [{"text": "salut"}])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("en", "fr"))
    Path("posts/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    found = {s: texts(Hub(path="posts", revision="1", subset=s)) for s in ("en", "fr")}
    assert found == {"en": ["hello"], "fr": ["salut"]}


def test_the_first_rows_are_taken_and_cut(posts):
    assert texts(posts.model_copy(update={"first": 2, "cut": 3})) == ["dö0", "dö1"]


def test_it_is_fetched_once_and_never_asked_for_again(posts, folders, monkeypatch):
    before = texts(posts)
    (written,) = folders.glob("hub-*.jsonl")
    monkeypatch.setitem(sys.modules, "datasets", None)
    Path("posts").rename("elsewhere")
    assert texts(posts) == before
    assert prepare(posts, Bytes()).splits["val"].n_documents == 2
    # The same file in $HPO_DATA is used too.
    Path("mine").mkdir()
    written.rename(Path("mine") / written.name)
    monkeypatch.setenv("HPO_DATA", "mine")
    assert texts(posts) == before


@pytest.mark.parametrize(
    "change",
    [{"subset": "x"}, {"revision": "2"}, {"split": "test"}, {"column": "b"}, {"first": 9}, {"cut": 9}, {"path": "o/n"}],
    ids=str,
)
def test_every_field_that_changes_the_text_names_another_file(folders, monkeypatch, change):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"text": "a", "b": "c"}])
    a = Hub(path="owner/name", revision="1")
    assert a.files() != a.model_copy(update=change).files()
    assert a.files() == a.model_copy(update={"val_fraction": 0.2, "synthetic": 1.0}).files()


def test_revision_subset_and_split_reach_the_library_and_rows_are_streamed(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *args, **named: asked.append((args, named)) or iter([{"text": "a"}])
    )
    assert texts(Hub(path="owner/name", subset="en", revision="abc", split="test")) == ["a"]
    ((args, named),) = asked
    assert args == ("owner/name", "en")
    assert named.pop("cache_dir").startswith(os.environ["HPO_CACHE"])
    assert named == {"revision": "abc", "split": "test", "streaming": True}


def test_no_more_rows_are_read_than_asked_for(monkeypatch):
    taken = []
    rows = ({"text": f"{taken.append(i)}{i}"} for i in range(100))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    assert len(texts(Hub(path="owner/name", revision="1", first=5))) == 5
    assert taken == [0, 1, 2, 3, 4]


def test_two_at_once_fetch_once(monkeypatch):
    calls = []

    def slow(*_, **__):
        calls.append(1)
        threading.Event().wait(0.1)
        return [{"text": "a"}]

    monkeypatch.setattr("datasets.load_dataset", slow)
    corpus = Hub(path="owner/name", revision="1")
    both = [threading.Thread(target=corpus.files) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(calls) == 1


def test_an_unreachable_hub_is_named_with_what_to_put_where(monkeypatch, folders):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nand more lines")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    corpus = Hub(path="owner/name", revision="abc")
    said = message(corpus)
    assert said.startswith(
        "data: cannot load https://huggingface.co/datasets/owner/name at revision abc: "
        "Couldn't reach 'owner/name' on the Hub; or put the documents at $HPO_DATA/hub-"
    )
    assert said.endswith('.jsonl, one line {"text": "the text"} per document')
    assert not list(folders.glob("*.jsonl"))
    # The remedy in the message works.
    name = said.partition("$HPO_DATA/")[2].partition(",")[0]
    jsonl(f"mine/{name}", [{"text": "mine"}])
    monkeypatch.setenv("HPO_DATA", "mine")
    assert texts(corpus) == ["mine"]


def test_a_connection_lost_half_way_leaves_nothing(monkeypatch, folders):
    def torn(*_, **__):
        yield {"text": "a"}
        raise ConnectionError("lost")

    monkeypatch.setattr("datasets.load_dataset", torn)
    assert "revision abc: lost; or put" in message(Hub(path="owner/name", revision="abc"))
    assert [path.suffix for path in folders.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"column": "txt"}, "data.column: no column 'txt' in posts; did you mean text? columns: text, n"),
        ({"column": "n"}, "data.column: must hold text, got int in row 1 of posts"),
        ({"split": "tset"}, "data: cannot load posts at revision 1: Bad split: tset. Available splits: ['train', "),
        ({"subset": "en"}, "data: cannot load posts at revision 1: BuilderConfig 'en' not found. Available: ['defau"),
    ],
    ids=str,
)
def test_what_the_data_set_has_not_got_is_refused_with_what_it_has(posts, folders, change, said):
    assert message(posts.model_copy(update=change)).startswith(said)
    assert not list(folders.glob("*.jsonl"))


def test_a_data_set_without_rows_is_refused(monkeypatch, folders):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [])
    said = "data.split: split train of https://huggingface.co/datasets/owner/name has no rows"
    assert message(Hub(path="owner/name", revision="1")) == said
    assert not list(folders.glob("*.jsonl"))


@pytest.mark.parametrize("corpus", [Hub(path="owner/name", revision="1"), HackerNews()], ids=["hub", "hacker-news"])
def test_without_the_library_both_remedies_are_named(monkeypatch, corpus):
    monkeypatch.setitem(sys.modules, "datasets", None)
    said = message(corpus)
    assert f"data.name: {corpus.name} needs" in said
    assert "pip install 'hpo[hub]'" in said
    assert "$HPO_DATA/h" in said


def test_a_revision_is_required():
    with pytest.raises(ValidationError, match="revision\n  Field required"):
        Hub(path="owner/name")

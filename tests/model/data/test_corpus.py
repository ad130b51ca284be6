import gzip
import hashlib
import itertools
import json
import os
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from model.data import text_files
from model.data.corpus import Corpus, HackerNews, Hub, Lines, Names, PythonDocs, Table, Text, TinyShakespeare
from model.errors import ConfigError

needs_data = pytest.mark.skipif(not os.environ.get("HPO_DATA"), reason="HPO_DATA is not set")

ROWS = 'id,title\n1,hello\n2,NA\n3,"a, b"\n'


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def server():
    """Run an HTTP server: /whole is complete, /torn stops half way, /missing has status 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if self.path == "/missing" else 200)
            self.send_header("Content-Length", "10" if self.path == "/torn" else "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # close() waits for the open requests

    with Server(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def write(name, content):
    if isinstance(content, str):
        content = content.encode()
    with open(name, "wb") as file:
        file.write(gzip.compress(content) if name.endswith(".gz") else content)


def message(corpus):
    with pytest.raises(ConfigError) as caught:
        list(corpus.documents())
    return str(caught.value)


def test_python_docs_are_megabytes_of_english_in_the_same_order_each_time():
    documents = list(PythonDocs().documents())
    assert 1.5e6 < sum(len(d.encode()) for d in documents) < 4e6
    assert documents[:200] == list(itertools.islice(PythonDocs().documents(), 200))
    assert list(PythonDocs().files()) == list(PythonDocs().files())
    assert not [p for p in PythonDocs().files() if "site-packages" in p.parts or "test" in p.parts]


def test_union_picks_the_corpus_by_name_and_names_an_unknown_field():
    adapter = TypeAdapter(Corpus)
    assert adapter.validate_python({"name": "lines", "path": "a.txt"}) == Lines(path="a.txt")
    with pytest.raises(ValidationError, match="colum"):
        adapter.validate_python({"name": "table", "path": "a.csv", "colum": "x"})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"shuffle_documents": True, "layout": "documents"},
            "shuffle_documents must be false with layout documents, whose rows have a new order in each epoch anyway, "
            "got true",
        ),
        ({"synthetic_order": 3}, "synthetic_order must be left out where synthetic is 0, got 3; set synthetic"),
        ({"synthetic": 1.0, "synthetic_order": 6}, "less than or equal to 5"),
        ({"drop_documents": 1.0}, "less than 1"),
        ({"curriculum": "long"}, "'none', 'short' or 'easy'"),
    ],
    ids=str,
)
def test_a_field_without_effect_or_out_of_bounds_is_refused(fields, said):
    with pytest.raises(ValidationError) as caught:
        Lines(path="a.txt", **fields)
    assert said in str(caught.value)


def test_all_that_has_no_effect_is_reported_at_once():
    with pytest.raises(ValidationError, match=r"shuffle_documents must.*; synthetic_order must"):
        Names(shuffle_documents=True, layout="documents", synthetic_order=2)


def test_a_complete_dump_loads_again():
    for corpus in (Lines(path="a"), Names(synthetic=0.5), Names(layout="documents", drop_documents=0.5)):
        assert type(corpus).model_validate(corpus.model_dump()) == corpus


def test_every_field_says_what_it_means():
    for corpus in (PythonDocs, Names, TinyShakespeare, HackerNews, Hub, Text, Lines, Table):
        for name, field in corpus.model_fields.items():
            assert name == "name" or field.description, f"{corpus.__name__}.{name}"


def test_passages_hold_about_a_thousand_characters_and_lose_no_word():
    text = "\n\n".join(f"paragraph {i} " + "word " * 30 for i in range(50))
    parts = list(text_files.passages(text))
    assert all(1000 <= len(part) < 1400 for part in parts[:-1])
    assert " ".join(parts).split() == text.split()


@pytest.mark.parametrize(
    "text",
    ["a line of a log\n" * 3000, "one endless paragraph " * 2000, "x" * 30_000],
    ids=["lines", "spaces", "neither"],
)
def test_long_text_without_blank_lines_is_still_cut(text):
    parts = list(text_files.passages(text))
    assert len(parts) > 20
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_text_reads_a_glob_of_plain_and_gz_files_in_the_order_of_their_names():
    write("b.txt.gz", "second\r\n\r\nfile")
    write("a.txt", "\ufefffirst")
    assert list(Text(path="*.txt*").documents()) == ["first", "second\n\nfile"]


def test_a_table_that_is_read_as_text_is_remarked_and_a_text_is_not():
    for name in ("rows.csv", "rows.JSONL", "rows.csv.gz", "notes.txt"):
        write(name, "")
    for name in ("rows.csv", "rows.JSONL", "rows.csv.gz"):
        for corpus in (Text, Lines):
            assert f"trains on the notation of {name}," in corpus(path=name).remark()
        assert Table(path=name, column="text").remark() == ""
    assert Text(path="notes.txt").remark() == ""


def test_lines_are_cut_at_line_feeds_only():
    write("a.txt", "one\u2028still one\ntwo\x0cstill two\n")
    assert list(Lines(path="a.txt").documents()) == ["one\u2028still one", "two\x0cstill two", ""]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_table_gives_the_same_column_whatever_the_format(name):
    rows = {"id": [1, 2, 3], "title": ["hello", "NA", "a, b"]}
    if "csv" in name:
        write(name, ROWS)
    elif "tsv" in name:
        write(name, "id\ttitle\n1\thello\n2\tNA\n3\ta, b\n")
    elif "jsonl" in name:
        write(name, "".join(json.dumps({"title": t}) + "\n" for t in rows["title"]))
    else:
        pd.DataFrame(rows).to_parquet(name)
    assert [d for d in Table(path=name, column="title").documents() if d] == rows["title"]


@pytest.mark.parametrize("kind", [Text, Lines, partial(Table, column="title")], ids=["text", "lines", "table"])
def test_a_file_that_cannot_be_used_is_named_with_the_reason(kind):
    write("zero.csv", "")
    write("nul.csv", b"ab\0cd")
    write("latin.csv", b"caf\xe9")
    write("torn.csv.gz", "")
    with open("torn.csv.gz", "wb") as file:
        file.write(gzip.compress(os.urandom(100))[:40])
    os.mkdir("folder")
    cases = {
        "notes.csv": "data.path: no such file: notes.csv",
        "no*.csv": "data.path: no file matches no*.csv",
        "zero.csv": "data.path: empty file: zero.csv",
        "nul.csv": "data.path: must be UTF-8 text, got a NUL byte at offset 2: nul.csv",
        "latin.csv": "data.path: must be UTF-8 text, got byte 0xe9 at offset 3: latin.csv; save it as UTF-8",
        "folder": "data.path: is a directory: folder; give a file or a glob such as folder/*.txt",
    }
    assert {path: message(kind(path=path)) for path in cases} == cases
    assert message(kind(path="torn.csv.gz")).startswith("data.path: not a whole gzip file: torn.csv.gz")


@pytest.mark.parametrize("name", ["posts.csv", "posts.jsonl", "posts.parquet"])
def test_a_table_without_the_column_lists_those_it_has(name):
    if name == "posts.csv":
        write(name, ROWS)
    elif name == "posts.jsonl":
        write(name, '{"id": 1, "title": "hello"}\n')
    else:
        pd.DataFrame({"id": [1], "title": ["hello"]}).to_parquet(name)
    expected = f"data.column: no column 'titel' in {name}; did you mean title? columns: id, title"
    assert message(Table(path=name, column="titel")) == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "a,b\n1,2\n1,2,3,4\n", "not a table"),
        ("t.jsonl", '{"a": "x"}\nnonsense\n', "line 2 is not JSON"),
        ("t.jsonl", "[1, 2]\n", "line 1 must be a JSON object"),
        ("t.parquet", "a,b\n", "not a parquet file"),
        ("t.xlsx", "a,b\n", "must end in .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_a_table_that_is_none_says_so(name, content, said):
    write(name, content)
    assert said in message(Table(path=name, column="a"))


def test_a_named_corpus_is_searched_in_hpo_data_before_any_download(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_DATA", str(tmp_path))
    (tmp_path / "names.txt").write_text("emma\nolivia")
    assert list(Names().documents()) == ["emma", "olivia"]
    (tmp_path / "hacker-news.txt.gz").write_bytes(gzip.compress(b"A title\nAnother"))
    assert list(HackerNews().documents()) == ["A title", "Another"]


def test_a_download_is_checked_and_kept(server, tmp_path):
    good = hashlib.sha256(b"hello").hexdigest()
    target = tmp_path / "downloads" / "names.txt"
    assert text_files.download(f"{server}/whole", target, good).read_bytes() == b"hello"
    assert os.listdir(target.parent) == ["names.txt"]


@pytest.mark.parametrize(
    ("page", "said"), [("whole", "wrong content"), ("torn", "cannot download"), ("missing", "Not Found")]
)
def test_a_failed_download_leaves_nothing_and_says_where_to_put_the_file(server, tmp_path, page, said):
    with pytest.raises(ConfigError, match=said) as caught:
        text_files.download(f"{server}/{page}", tmp_path / "downloads" / "names.txt", "0" * 64)
    assert f"{server}/{page}" in str(caught.value)
    assert "or put the file at $HPO_DATA/names.txt" in str(caught.value)
    assert not (tmp_path / "downloads").exists()


def test_a_refused_connection_fails_at_once(tmp_path):
    with pytest.raises(ConfigError, match="Connection refused"):
        text_files.download("http://127.0.0.1:9/names.txt", tmp_path / "names.txt", "0" * 64)


@pytest.mark.data
@needs_data
def test_public_corpora_have_the_known_sizes():
    names = [n for n in Names().documents() if n]
    assert (len(names), len(set(names))) == (32_033, 29_494)
    titles = [t for t in HackerNews().documents() if t]
    assert (len(titles), len(titles) - len(set(titles))) == (216_804, 3_968)
    passages = list(TinyShakespeare().documents())
    assert 800 < len(passages) < 1100


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("corpus", [Names(), TinyShakespeare()], ids=["names", "tiny-shakespeare"])
def test_the_hash_that_a_download_must_have_is_that_of_the_real_file(corpus, monkeypatch):
    real = corpus.files()[0]
    monkeypatch.delenv("HPO_DATA")
    asked = []
    monkeypatch.setattr(text_files, "download", lambda url, target, sha256: asked.append(sha256) or real)
    corpus.files()
    assert asked == [hashlib.sha256(real.read_bytes()).hexdigest()]

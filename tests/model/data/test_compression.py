"""Files are read by what they hold: compressed or not, in any encoding with a byte order mark, with any line ends."""

import bz2
import gzip
import io
import lzma
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from model.data.corpus import Lines, Table, Text
from model.errors import ConfigError

WORDS = "first line\nsecond līne\n"
ZSTD = b"\x28\xb5\x2f\xfd" + bytes(20)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def zipped(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def message(corpus):
    with pytest.raises(ConfigError) as caught:
        list(corpus.documents())
    return str(caught.value)


PACKED = {
    "gz": gzip.compress(WORDS.encode()),
    "xz": lzma.compress(WORDS.encode()),
    "lzma2 of two streams.xz": lzma.compress(b"first line\n") + lzma.compress("second līne\n".encode()),
    "bz2": bz2.compress(WORDS.encode()),
    "lzma": lzma.compress(WORDS.encode(), format=lzma.FORMAT_ALONE),
    "zip": zipped({"a.txt": WORDS}),
    "attributes of macOS.zip": zipped({"__MACOSX/._a.txt": "x", "a.txt": WORDS}),
}


@pytest.mark.parametrize("name", ["a.txt", "a", "A.TXT.GZ", "a.txt.bin"])
@pytest.mark.parametrize("kind", PACKED)
def test_a_compressed_file_is_read_whatever_its_name_is(kind, name):
    if name.endswith("GZ") and kind != "gz":
        name = name.replace("GZ", kind.rpartition(".")[2].upper())
    Path(name).write_bytes(PACKED[kind])
    assert [text for text in Lines(path=name).documents() if text] == WORDS.splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
def test_lines_are_the_same_in_every_encoding_and_with_every_line_end(encoding, end):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    Path("a.txt").write_bytes((mark + WORDS.replace("\n", end)).encode(encoding))
    assert [text for text in Lines(path="a.txt").documents() if text] == WORDS.splitlines()


def test_a_carriage_return_within_lines_is_kept():
    Path("a.txt").write_bytes(b"10 %\r20 %\nnext\n")
    assert list(Lines(path="a.txt").documents()) == ["10 %\r20 %", "next", ""]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_is_recognised_by_the_name_within_the_compression(kind):
    content = "t\nfirst\nsecond\n" if kind == "csv" else '{"t": "first"}\n{"t": "second"}\n'
    files = {
        f"a.{kind.upper()}": content.encode(),
        f"a.{kind}.GZ": gzip.compress(content.encode()),
        f"b.{kind}": gzip.compress(content.encode()),
        f"a.{kind}.xz": lzma.compress(content.encode()),
        f"a.{kind}.lzma": lzma.compress(content.encode(), format=lzma.FORMAT_ALONE),
        "any.zip": zipped({f"inner.{kind.upper()}": content}),
        "mac.zip": zipped({f"__MACOSX/._inner.{kind}": "x", f"inner.{kind}": content}),
    }
    for name, packed in files.items():
        Path(name).write_bytes(packed)
        assert [text for text in Table(path=name, column="t").documents() if text] == ["first", "second"], name


@pytest.mark.parametrize("size", [2**64 - 1, len(WORDS.encode())], ids=["end marker", "known size"])
@pytest.mark.parametrize("dict_size", [2**12, 2**16, 2**23])
def test_legacy_lzma_is_read_whatever_its_header_says(size, dict_size):
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": dict_size}]
    packed = lzma.compress(WORDS.encode(), format=lzma.FORMAT_ALONE, filters=filters)
    Path("a").write_bytes(packed[:5] + size.to_bytes(8, "little") + packed[13:])
    assert list(Lines(path="a").documents()) == [*WORDS.splitlines(), ""]


@pytest.mark.parametrize("text", ["]", "]]", "] and a longer line of text", "]\n\n", "]\u0001\u0001" + 20 * "x"])
def test_text_that_begins_as_legacy_lzma_does_is_text(text):
    Path("a.txt").write_text(text)
    assert list(Lines(path="a.txt").documents()) == text.split("\n")


REFUSED = {
    "a.zst": (ZSTD, "zstd files need Python 3.14: a.zst; unpack it with `zstd -d a.zst`"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(9), "7z files cannot be read: a.7z; unpack it with `7z x a.7z`"),
    "my a;b.zst": (ZSTD, "unpack it with `zstd -d 'my a;b.zst'`"),
    "my a;b.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(9), "unpack it with `7z x 'my a;b.7z'`"),
    "a.lz4": (b"\x04\x22\x4d\x18" + bytes(9), "unpack it with `lz4 -d a.lz4`"),
    "two.zip": (zipped({"a": "x", "b": "y"}), "a zip file must hold one file, got 2: two.zip; unpack it, use a glob"),
    "none.zip": (zipped({}), "a zip file must hold one file, got 0"),
    "torn.gz": (PACKED["gz"][:-9], "not a whole gzip file: torn.gz"),
    "torn": (PACKED["xz"][:-9], "not a whole xz file: torn"),
    "torn.lzma": (PACKED["lzma"][:-9], "not a whole lzma file: torn.lzma"),
    "torn.bz2": (PACKED["bz2"][:-9], "not a whole bzip2 file: torn.bz2"),
    "bits.bz2": (PACKED["bz2"][:20] + b"xxxx" + PACKED["bz2"][24:], "not a whole bzip2 file: bits.bz2"),
    "torn.zip": (PACKED["zip"][:-9], "not a whole zip file: torn.zip"),
    "text.gz": (b"no gzip", "not a whole gzip file: text.gz"),
    "tar.gz": (gzip.compress(bytes(257) + b"ustar" + bytes(300)), "it is a tar archive, unpack it, use a glob"),
    "wide.txt": ("plain".encode("utf-16-le"), "it may be UTF-16 without a byte order mark, save it as UTF-8"),
    "bracket.txt": ("] is plain".encode("utf-16-le"), "it may be UTF-16 without a byte order mark, save it as UTF-8"),
    "odd.txt": ("plain".encode("utf-16") + b"x", "must be UTF-16 text"),
    "a.parquet": (b"PAR1" + bytes(9), "it is a parquet file, which data.name=table reads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named_with_the_remedy(name):
    content, expected = REFUSED[name]
    Path(name).write_bytes(content)
    said = message(Text(path=name))
    assert said.startswith("data.path: ")
    assert expected in said
    assert "\n" not in said


def test_a_pipe_is_refused_because_it_can_be_read_only_once():
    os.mkfifo("pipe")
    with pytest.raises(ConfigError, match=r"data\.path: must be a file, got a pipe or a device: pipe"):
        Text(path="pipe").files()


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_without_filling_the_memory():
    Path("bomb.gz").write_bytes(256 * gzip.compress(b" " * 2**24))  # 4 GiB in 4 MB
    program = "import sys; from model.data.corpus import Text; list(Text(path=sys.argv[1]).documents())"
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (500 * 2**20, 500 * 2**20))  # noqa: E731
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", program, "bomb.gz"], preexec_fn=limit, capture_output=True, text=True, env=environment
    )
    last = done.stderr.splitlines()[-1]
    assert "ConfigError: data.path: its first " in last
    assert " bytes unpack to more than 250 times as many, which text does not: bomb.gz; " in last

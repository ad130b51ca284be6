import errno
import json
import math
import os
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from model.data.corpus import Lines
from model.data.prepare import prepare
from model.data.prepared import bits_per_byte, list_prepared
from model.data.tokenizer import BPE, Bytes, Chars
from model.errors import ConfigError
from tests.support.disk import small_disk

pytestmark = pytest.mark.usefixtures("cache")


def test_the_same_again_is_read_not_made(corpus):
    first = prepare(corpus, Bytes())
    made = (first.folder / "train.bin").stat().st_mtime_ns
    said = []
    again = prepare(corpus, Bytes(), lambda *words: said.append(words))
    assert (again.hash, said) == (first.hash, [])
    assert (again.folder / "train.bin").stat().st_mtime_ns == made


def _prepared_hash(corpus):
    return prepare(corpus, BPE(vocab_size=300)).hash


def test_four_processes_at_once_make_one_folder(corpus, cache):
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        hashes = set(pool.map(_prepared_hash, [corpus] * 4))
    assert len(hashes) == 1
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 1


def test_what_a_killed_process_left_is_replaced(corpus, cache):
    name = prepare(corpus, Bytes()).folder.name
    (cache / name).rename(cache / f".{name}.part")
    (cache / f".{name}.part" / "val.bin").unlink()
    assert prepare(corpus, Bytes()).splits["val"].n_documents == 8
    assert not (cache / f".{name}.part").exists()


def flip(content):
    """Return content in which one bit of its middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def altered_hash(content):
    meta = json.loads(content)
    return json.dumps(meta | {"hash": "0" * 64}).encode()


DAMAGES = {
    "shorter": lambda content: content[:-8],
    "one bit": flip,
    "zeros": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
    "gone": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["train.bin", "val.starts", "tokenizer.json", "meta.json"])
def test_prepared_data_that_were_altered_are_prepared_again(corpus, caplog, name, damage):
    before = prepare(corpus, Bytes())
    path = before.folder / name
    content = path.read_bytes()
    if (change := DAMAGES[damage]) is None:
        path.unlink()
    else:
        path.write_bytes(change(content))
    after = prepare(corpus, Bytes())
    assert (after.hash, after.rows, path.read_bytes()) == (before.hash, before.rows, content)
    assert "it is prepared again" in caplog.text
    assert [p.name for p in before.folder.parent.iterdir() if "damaged" in p.name] == []


def test_a_hash_that_was_written_into_the_prepared_data_is_not_believed(corpus):
    before = prepare(corpus, Bytes())
    path = before.folder / "meta.json"
    path.write_bytes(altered_hash(path.read_bytes()))
    assert prepare(corpus, Bytes()).hash == before.hash


def test_prepared_data_of_an_earlier_version_are_used_as_they_are(corpus):
    before = prepare(corpus, Bytes())
    path = before.folder / "meta.json"
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("files", "checksum", "rows")}
    path.write_text(json.dumps(old))
    after = prepare(corpus, Bytes(), lambda *_: pytest.fail("prepared again"))
    assert (after.hash, after.rows) == (before.hash, {})


def test_damaged_data_are_not_listed(corpus, caplog):
    path = prepare(corpus, Bytes()).folder / "meta.json"
    path.write_bytes(b"[5")
    assert list_prepared() == []
    assert "prepares it again" in caplog.text


def test_a_cache_that_cannot_be_written_is_named(corpus, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"data: cannot write in .*/file: .*; set HPO_CACHE"):
        prepare(corpus, Bytes())


def test_a_full_disk_leaves_no_half_folder_and_says_how_much_is_needed(tmp_path, corpus, monkeypatch):
    disk = tmp_path / "disk"
    with small_disk(disk, "16k"):
        monkeypatch.setenv("HPO_CACHE", str(disk))
        Path(corpus.path).write_text("".join(f"word number {i}\n" for i in range(9000)))
        with pytest.raises(ConfigError) as caught:
            prepare(corpus, Bytes())
        assert [p for p in disk.iterdir() if p.is_dir()] == []
    assert str(caught.value) == (
        f"data: {os.strerror(errno.ENOSPC).lower()} preparing lines under {disk}; needs up to 0.3 MB; "
        "set HPO_CACHE to a folder with room"
    )


def test_a_limit_on_file_size_leaves_no_half_folder(corpus, cache):
    Path(corpus.path).write_text("".join(f"word number {i}\n" for i in range(9000)))
    program = (
        "import sys; from model.data.corpus import Lines; from model.data.tokenizer import Bytes;"
        "from model.data.prepare import prepare; prepare(Lines(path=sys.argv[1]), Bytes())"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
    run = subprocess.run([sys.executable, "-c", program, corpus.path], preexec_fn=limit, capture_output=True, text=True)
    assert "CacheError: data: file too large preparing lines under" in run.stderr
    assert [p for p in cache.iterdir() if p.is_dir()] == []


def test_list_shows_what_is_prepared(corpus):
    assert list_prepared() == []
    prepared = prepare(corpus, Bytes())
    (meta,) = list_prepared()
    assert (meta["name"], meta["hash"], meta["folder"]) == ("lines", prepared.hash, str(prepared.folder))
    assert meta["splits"]["val"]["documents"] == 8
    assert meta["corpus"]["path"] == corpus.path
    json.dumps(meta)


def test_bits_per_byte_charge_unknown_characters_for_a_code_point(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(chr(0x4E00 + i) for i in range(100)), "utf-8")
    split = prepare(Lines(path=str(tmp_path / "a.txt")), Chars()).splits["val"]
    # 4 documents of one 3-byte character, 8 targets, all characters unknown
    assert bits_per_byte(math.log(2), split) == pytest.approx((8 * 1 + 4 * math.log2(1_114_112)) / 12)

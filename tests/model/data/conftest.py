"""What the tests of prepared data share: a cache folder of their own and a small corpus."""

import pytest

from model.data.corpus import Lines


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"word number {i} é\n" for i in range(200)), "utf-8")
    return Lines(path=str(path))

"""A file is replaced completely or not at all."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.cache import atomic_write, locked


def test_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    for content in ("old", "new"):
        with atomic_write(target) as part:
            part.write_text(content)
            assert part.parent == target.parent
        assert target.read_text() == content
    assert list(target.parent.iterdir()) == [target]


def test_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail_halfway() -> None:
        with atomic_write(target) as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_process_that_waits_for_the_lock_of_another_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.cache.SILENT_S", 0.1)
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "corpus"):
            waiting = pool.submit(lambda: locked(tmp_path / "corpus").__enter__())
            time.sleep(0.5)
            assert not waiting.done()
        waiting.result(timeout=60)
    assert f"waiting for another process, which prepares {tmp_path / 'corpus'}" in capsys.readouterr().err

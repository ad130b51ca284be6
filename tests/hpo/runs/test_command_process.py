"""A command that cannot be started leaves nothing open. tests/hpo/runs/test_command.py runs commands."""

import os
import threading
from pathlib import Path

import pytest

from hpo.runs.command_process import CommandProcess


@pytest.mark.parametrize("words", [["a\0b"], ["x" * 2**22]])  # no argument may have a null character, or 4 MiB
def test_command_that_cannot_be_started_leaves_no_file_open(words: list[str], tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises((ValueError, OSError)):
            CommandProcess(words, {}, tmp_path / "output.log", None, threading.Event())
    assert sorted(os.listdir("/proc/self/fd")) == before

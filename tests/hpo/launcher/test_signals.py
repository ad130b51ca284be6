"""A launch that the user suspends and continues, and what it shows in a terminal that cannot move its cursor."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import MODULE, environment, hpo, trivial, worker_processes


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def is_suspended(pid: int) -> bool:
    """Return whether a process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.usefixtures("new_interpreters")
def test_ctrl_z_suspends_the_workers_too_and_fg_continues_them(tmp_path: Path) -> None:
    trivial(tmp_path)
    slow = MODULE.replace("for rung in 1, 2, 3:", "import time\n    for rung in 1, 2, 3:\n        time.sleep(0.3)")
    (tmp_path / "trivial.py").write_text(slow)
    command = [sys.executable, "-m", "hpo", "launch", "--study", "trivial.yaml", "--plain"]
    # A process group of its own, as a shell with job control starts a command.
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True, process_group=0
    ) as launch:
        assert launch.stderr is not None
        while "rung 1/3" not in launch.stderr.readline():
            pass
        (worker,) = worker_processes(tmp_path)
        launch.send_signal(signal.SIGTSTP)
        eventually(lambda: is_suspended(launch.pid) and is_suspended(worker), "not suspended")
        launch.send_signal(signal.SIGCONT)
        eventually(lambda: not is_suspended(launch.pid) and not is_suspended(worker), "not continued")
        assert "4 complete, 0 pruned, 0 failed" in launch.stderr.read()
        assert launch.wait() == 0


def test_launch_prints_lines_in_a_terminal_that_cannot_show_a_table(tmp_path: Path) -> None:
    trivial(tmp_path)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hpo", "launch", "--study", "trivial.yaml"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(TERM="dumb"), stdout=subprocess.DEVNULL, stderr=theirs
    ) as launch:
        os.close(theirs)
        text = b""
        try:
            while part := os.read(ours, 4096):
                text += part
        except OSError:  # the terminal is closed
            pass
        assert launch.wait() == 0
    assert b"worker 1: trial 3: complete at rung 3/3" in text
    assert b"\x1b" not in text


def test_whatever_a_training_function_prints_is_not_taken_for_an_event(tmp_path: Path) -> None:
    trivial(tmp_path)
    printed = "5", "[1]", "null", '{"event": 3}', '{"event": "joined"}', "{" * 5, "[" * 9000
    lines = "".join(f"    print({text!r}, flush=True)\n" for text in printed)
    lines += "    import sys\n    sys.stdout.buffer.write(bytes([255, 10]) * 50_000)\n    sys.stdout.flush()\n"
    (tmp_path / "trivial.py").write_text(MODULE.replace("    for rung in", f"{lines}    for rung in"))
    done = hpo("launch", "--study", "trivial.yaml", "--plain", cwd=tmp_path)
    assert "4 complete, 0 pruned, 0 failed" in done.stderr
    assert "worker 1: trial 3: complete at rung 3/3" in done.stderr

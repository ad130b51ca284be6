"""What a launch does with the processes of its workers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpo.launcher.processes import WorkerGroup
from hpo.launcher.ray_process import RemoteProcess
from tests.support.command import environment, hpo, trivial
from tests.support.command import worker_processes as workers
from tests.support.planted import planted_study as planted

CHILDREN = """

import subprocess


def parent(config):
    child = subprocess.Popen(["sleep", "600"])
    with open("children", "a") as file:
        file.write(f"{child.pid}\\n")
    yield from train(config)
    time.sleep(600 if os.path.exists("hang") else 0)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_children_of_a_training_do_not_outlive_their_worker(tmp_path: Path) -> None:
    planted(tmp_path, train="curves:parent", budget={"trials": 2}, pruner={"name": "none"}, baseline=[])
    with (tmp_path / "curves.py").open("a") as module:
        module.write(CHILDREN)
    (tmp_path / "hang").touch()
    command = [sys.executable, "-m", "hpo", "launch", "--study", "planted.yaml", "--plain"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as launch:
        deadline = time.monotonic() + 60
        while not (tmp_path / "children").exists() or not (tmp_path / "children").read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (first,) = map(int, (tmp_path / "children").read_text().split())
        (tmp_path / "hang").unlink()
        (worker,) = workers(tmp_path)
        assert is_alive(first)
        os.kill(worker, signal.SIGKILL)
        _, stderr = launch.communicate(timeout=120)
    assert launch.returncode == 0, stderr
    children = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    assert len(children) >= 2
    assert [pid for pid in children if is_alive(pid)] == []


@pytest.mark.parametrize("command", [("launch", "--study", "trivial.yaml"), ("worker",), ("worker", "--follow")])
@pytest.mark.parametrize("value", ["abc", "0"])
def test_wrong_length_of_a_lease_is_refused_before_anything_is_registered(
    tmp_path: Path, command: tuple[str, ...], value: str
) -> None:
    trivial(tmp_path)
    done = hpo(*command, cwd=tmp_path, status=2, HPO_LEASE_S=value)
    assert f"HPO_LEASE_S: must be a number of seconds from 1 to 86400, got '{value}'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_while_the_command_line_is_imported_prints_nothing(tmp_path: Path) -> None:
    hook = "import os, sys, signal, builtins\n"
    hook += "real = builtins.__import__\n"
    hook += "def imported(name, *more, **keys):\n"
    hook += "    if name == os.environ.get('INTERRUPT_AT'):\n"
    hook += "        del os.environ['INTERRUPT_AT']\n"
    hook += "        signal.raise_signal(signal.SIGINT)\n"
    hook += "    return real(name, *more, **keys)\n"
    hook += "builtins.__import__ = imported\n"
    (tmp_path / "sitecustomize.py").write_text(hook)
    root = environment()["PYTHONPATH"]
    for module in ("hpo.cli.main", "typer", "hpo.commands.show", "rich.console"):
        env = environment(PYTHONPATH=f"{tmp_path}:{root}", INTERRUPT_AT=module, TESTS_FORK_SERVER="")
        done = subprocess.run(
            [sys.executable, "-m", "hpo", "status"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", ""), module


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_ends_the_training_of_a_users_function_with_status_130(tmp_path: Path, signals: int) -> None:
    planted(tmp_path)
    with (tmp_path / "curves.py").open("a") as module:
        module.write(
            "\n\ndef slow(config):\n    yield 1, 1.0\n    time.sleep(0.5 if os.path.exists('first') else 60)\n"
        )
        module.write("    yield 2, 1.0\n    yield 3, 1.0\n")
    (tmp_path / "one.yaml").write_text("x: 0.5\nprovenance: {train: 'curves:slow', config: 'curves:Config'}\n")
    if signals == 1:
        (tmp_path / "first").touch()
    command = [sys.executable, "-m", "hpo", "train", "one.yaml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes, text=True) as train:
        assert train.stdout is not None
        assert "rung 1" in train.stdout.readline()
        for _ in range(signals):
            train.send_signal(signal.SIGINT)
            time.sleep(0.2)
        _, stderr = train.communicate(timeout=60)
    # The second signal may come when Python is ending, and ends it. A shell reports 130 in both cases.
    assert train.returncode in ((130,) if signals == 1 else (130, -signal.SIGINT)), stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("target", ["precious", "/dev/full"])
def test_log_of_a_worker_on_a_ray_node_is_not_written_through_a_link_and_a_full_disk_is_no_error(
    target: str, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("content")
    log = tmp_path / "worker-1.log"
    log.symlink_to(target)

    class Actor:
        """Stands for the worker, on which the log does not depend."""

        class run:
            @staticmethod
            def options(**_: object) -> "type[Actor.run]":
                return Actor.run

            @staticmethod
            def remote(*_: object) -> list[object]:
                return []

    RemoteProcess(Actor, log, ())._write_log("line\n")
    assert (tmp_path / "precious").read_text() == "content"


class Ending(subprocess.Popen[str]):
    """A process that ends, and that another thread waits for, just after poll() has returned None `polls` times."""

    polls = 0

    def poll(self) -> int | None:
        self.polls -= 1
        if self.polls:
            return super().poll()
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        return None


class EndingGroup(WorkerGroup):
    """A group of one worker, which ignores SIGTERM."""

    def _start_process(self, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        command = ["sh", "-c", "trap '' TERM; echo; exec sleep 600"]
        process = Ending(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        process.stdout.readline()
        return process


@pytest.mark.parametrize(("method", "polls"), [("suspend", 1), ("resume", 1), ("stop", 3)])
def test_worker_may_end_before_a_signal_reaches_it(method: str, polls: int, tmp_path: Path) -> None:
    group = EndingGroup([], [{}], tmp_path)
    process = group.workers[0].process
    assert isinstance(process, Ending)
    process.polls = polls
    group.stop(patience=0.1) if method == "stop" else getattr(group, method)()
    assert process.returncode == -signal.SIGKILL
    assert process.polls <= 0

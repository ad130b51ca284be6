"""Trials of commands that are interrupted, killed or paused: each runs exactly once, and no process is left."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.runs.metrics import read_metrics
from hpo.storage.attributes import END_REASON
from tests.support.command import hpo, until, worker_processes
from tests.support.commands import processes_with
from tests.support.script_study import (
    check_nothing_left,
    cwd_of,
    launched,
    read_lines,
    read_study,
    write_study,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    check_nothing_left(tmp_path)


TRAIN = """
import signal, pathlib
checkpoint = pathlib.Path(os.environ["HPO_DIR"]) / "checkpoint"
start = int(checkpoint.read_text()) if checkpoint.exists() else 0
log("resumed.jsonl", step=start)

def stop(*_):
    checkpoint.write_text(str(done))
    sys.exit(0)

done = start  # a step whose report was cut off is trained again
signal.signal(signal.SIGTERM, stop)
for step in range(start + 1, 41):
    time.sleep(float(os.environ.get("PAUSE", "0.05")))
    if step % 10 == 0:
        say(step, float(sys.argv[1]) + 1 / step)
    done = step
log("ends.jsonl", argv=sys.argv[1:])
"""


def check_exact(folder: Path, n: int) -> None:
    """Check that each of n trials is complete, has one configuration, and was trained by one process at a time."""
    snapshot = read_study(folder)
    assert Counter(trial.state.value for trial in snapshot.trials) == {"complete": n}
    starts, ends = read_lines(folder, "starts.jsonl"), read_lines(folder, "ends.jsonl")
    for trial in snapshot.trials:
        mine = [start for start in starts if start["trial"] == trial.number]
        assert {tuple(start["argv"]) for start in mine} == {(repr(trial.params["x"]),)}
        assert [start["attempt"] for start in mine] == sorted({start["attempt"] for start in mine})
        assert sum(end["trial"] == trial.number for end in ends) >= 1
        curve = {rung: trial.params["x"] + 1 / (10 * rung) for rung in (1, 2, 3, 4)}
        assert trial.intermediate_values == pytest.approx(curve)
    assert len({trial.params["x"] for trial in snapshot.trials}) == n


def kill_9(folder: Path, launch: "subprocess.Popen[str]", victim: str) -> None:
    """Kill the launcher, the workers, or first the one and then the others."""
    if victim != "workers":
        launch.kill()
        launch.communicate()
    if victim != "launcher":
        for pid in worker_processes(folder):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "victim", ["workers", "launcher and workers", pytest.param("launcher", marks=pytest.mark.exhaustive)]
)
def test_kill_9_loses_and_doubles_nothing_and_leaves_no_process(folder: Path, victim: str) -> None:
    write_study(folder, TRAIN)
    with launched(folder, "--workers", "2", HPO_LEASE_S="2", PAUSE="0.04") as launch:
        assert until(lambda: len(read_lines(folder, "starts.jsonl")) >= 2)
        time.sleep(0.8)
        kill_9(folder, launch, victim)
        if victim == "workers":
            launch.communicate(timeout=60)
            assert launch.returncode == 0
    assert until(lambda: [pid for pid in processes_with("train.py") if cwd_of(pid) == folder] == [], 10)
    hpo("launch", "--study", "scripts", "--workers", "2", "--quiet", cwd=folder, HPO_LEASE_S="2", PAUSE="0.01")
    check_exact(folder, 4)
    assert len(read_lines(folder, "starts.jsonl")) > 4


@pytest.mark.exhaustive
def test_50_of_50_trials_get_one_configuration_each_under_kills(folder: Path) -> None:
    write_study(folder, TRAIN, budget={"trials": 50}, sampler="random")
    for round in range(6):
        with launched(folder, "--workers", "4", HPO_LEASE_S="2", PAUSE="0.02") as launch:
            time.sleep(9)
            kill_9(folder, launch, ("workers", "launcher", "launcher and workers")[round % 3])
            time.sleep(3)
            launch.kill()
            launch.communicate()
    hpo("launch", "--study", "scripts", "--workers", "4", "--quiet", cwd=folder, HPO_LEASE_S="2", PAUSE="0.01")
    check_exact(folder, 50)


def test_interrupted_script_saves_its_state_and_resumes_from_it(folder: Path) -> None:
    write_study(folder, TRAIN, budget={"trials": 1})
    with launched(folder, PAUSE="0.1") as launch:
        assert until(lambda: len(list(read_metrics(folder / "runs/scripts/trials/0000/metrics.jsonl"))) == 1)
        launch.send_signal(signal.SIGTERM)
        _, said = launch.communicate(timeout=60)
    assert launch.returncode == 128 + signal.SIGTERM, said
    before = time.monotonic()
    hpo("launch", "--study", "scripts", "--quiet", cwd=folder, PAUSE="0.01")
    check_exact(folder, 1)
    first, second = read_lines(folder, "resumed.jsonl")
    assert first["step"] == 0
    assert second["step"] >= 10
    assert time.monotonic() - before < 30
    rows = list(read_metrics(folder / "runs/scripts/trials/0000/metrics.jsonl"))
    assert [(row["rung"], row["step"]) for row in rows] == [(1, 10), (2, 20), (3, 30), (4, 40)]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_all_processes_of_a_worker_is_no_failure_of_its_trial(folder: Path, number: signal.Signals) -> None:
    deaf = "import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"
    write_study(folder, deaf + TRAIN, budget={"trials": 1})
    with launched(folder, PAUSE="0.1") as launch:
        assert until(lambda: len(list(read_metrics(folder / "runs/scripts/trials/0000/metrics.jsonl"))) == 1)
        (worker,) = worker_processes(folder)
        scripts = [pid for pid in processes_with("train.py") if cwd_of(pid) == folder and pid != worker]
        assert len(scripts) == 2  # the script and its guardian
        for pid in scripts:  # as Slurm's scancel does
            os.kill(pid, number)
        time.sleep(0.2)  # the signals of a busy machine do not arrive at one moment
        os.kill(worker, number)
        launch.communicate(timeout=60)
    snapshot = read_study(folder)
    assert [trial.state.value for trial in snapshot.trials] == ["waiting"]
    assert {event.event_type for event in snapshot.events} & {"preempted", "signal", "lost", "error"} == {"preempted"}
    hpo("launch", "--study", "scripts", "--quiet", cwd=folder, PAUSE="0.01")
    check_exact(folder, 1)
    assert read_lines(folder, "resumed.jsonl")[1]["step"] >= 10  # the script has saved its state after SIGTERM


def test_killed_trial_ends_between_its_reports(folder: Path) -> None:
    write_study(folder, "say(10, 1.0)\ntime.sleep(600)\n", budget={"trials": 1})
    with launched(folder) as launch:
        assert until(lambda: (folder / "runs/scripts/trials/0000/metrics.jsonl").exists())
        hpo("kill", "0", "--study", "scripts", cwd=folder)
        launch.communicate(timeout=60)
    assert read_study(folder).trials[0].user_attrs[END_REASON] == "killed"


def test_paused_commands_continue_from_their_checkpoints_when_they_are_promoted(folder: Path) -> None:
    space = {"x": {"choices": [0.125, 0.5, 0.25, 0.75]}}
    changes = {"sampler": "grid", "pruner": {"name": "asha", "factor": 2}, "steps": {"rungs": 4, "last": 40}}
    write_study(folder, TRAIN, space=space, **changes)
    hpo("launch", "--study", "scripts", "--quiet", cwd=folder, PAUSE="0.005")
    snapshot = read_study(folder)
    states = Counter(trial.state.value for trial in snapshot.trials)
    assert states["complete"] >= 1
    assert sum(states.values()) == 4
    best = min((t for t in snapshot.trials if t.values), key=lambda t: t.values[0])
    assert best.params["x"] == 0.125
    resumed = [line for line in read_lines(folder, "resumed.jsonl") if line["attempt"] > 1]
    assert resumed
    assert all(line["step"] >= 10 for line in resumed)
    pruned = [t.number for t in snapshot.trials if t.state.value == "pruned"]
    assert pruned
    assert not any((folder / f"runs/scripts/trials/{n:04}/files/checkpoint").exists() for n in pruned)

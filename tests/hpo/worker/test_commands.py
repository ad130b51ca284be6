"""Studies of commands from end to end: every way in which a script can end, interruptions, kills, permissions."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.runs.metrics import read_metrics
from hpo.storage.attributes import END_REASON
from hpo.storage.engine import open_readonly
from tests.support.command import environment, hpo, until, worker_processes
from tests.support.commands import processes_with

PATTERN = r"step (?P<step>\d+): val loss (?P<val_loss>\S+)"
# Each start of a process is a line of starts.jsonl, and each regular end a line of ends.jsonl.
LOGGED = """
import json, os, sys, time

def log(name, **more):
    line = json.dumps({"trial": int(os.environ["HPO_TRIAL"]), "attempt": int(os.environ["HPO_ATTEMPT"]), **more})
    with open(name, "a") as file:
        file.write(line + "\\n")

def say(step, loss):
    print(f"step {step}: val loss {loss}", flush=True)

log("starts.jsonl", argv=sys.argv[1:], time=time.time(), pid=os.getpid())
"""
WAYS = """
import signal, subprocess
case = sys.argv[1]
if case == "killed once" and os.environ["HPO_ATTEMPT"] == "1":
    say(10, 2.0)
    os.kill(os.getpid(), 9)
if case in ("good", "killed once"):
    for step in (10, 20, 30, 40):
        say(step, 3 - step / 100)
elif case == "nan":
    say(10, 2.0)
    say(20, float("nan"))
    time.sleep(600)
elif case == "exits 1":
    say(10, 2.0)
    raise ValueError("bad lr")
elif case == "early":
    say(30, 2.0)
elif case == "disorder":
    for step in (20, 10, 40, 30, 40):
        say(step, step / 10)
elif case == "after the end":
    say(40, 1.5)
    child = "import time; time.sleep(0.5); print('step 40: val loss 99'); time.sleep(600)"
    subprocess.Popen([sys.executable, "-S", "-c", child, "left-behind"])
elif case == "fails at the end":
    say(40, 1.75)
    raise ValueError("too late")
elif case == "trains on":
    for step in range(10, 90, 10):
        say(step, 2.5)
    time.sleep(600)
elif case == "hangs":
    say(10, 2.0)
    time.sleep(600)
elif case == "no memory":
    raise MemoryError
elif case == "too large":
    child = "rest = b'x' * 200_000_000; import time; time.sleep(600)"
    subprocess.Popen([sys.executable, "-S", "-c", child, "left-behind"])
    rest = b"x" * 200_000_000
    time.sleep(600)
elif case == "floods":
    for i in range(3000):
        print("x" * 1000)
    say(40, 1.0)
elif case == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(10, float("inf"))
    time.sleep(600)
log("ends.jsonl")
"""
EXPECTED = {  # state, reason, curve, text of the error or note
    "good": ("complete", "complete", {1: 2.9, 2: 2.8, 3: 2.7, 4: 2.6}, ""),
    "killed once": ("complete", "complete", {1: 2.0, 2: 2.8, 3: 2.7, 4: 2.6}, ""),
    "nan": ("pruned", "diverged", {1: 2.0}, ""),
    "exits 1": ("failed", "error", {1: 2.0}, "the command ended with status 1: ValueError: bad lr"),
    "early": ("failed", "error", {1: 2.0, 2: 2.0, 3: 2.0}, "status 0, after step 30, and the last rung is at step 40"),
    "silent": ("failed", "error", {}, "status 0, and nothing of what a line matches"),
    "disorder": ("complete", "complete", {1: 2.0, 2: 2.0, 3: 4.0, 4: 4.0}, ""),
    "after the end": ("complete", "complete", {1: 1.5, 2: 1.5, 3: 1.5, 4: 1.5}, ""),
    "fails at the end": ("complete", "complete", {1: 1.75, 2: 1.75, 3: 1.75, 4: 1.75}, "failed after its last rung"),
    "trains on": ("complete", "complete", {1: 2.5, 2: 2.5, 3: 2.5, 4: 2.5}, "trains past `steps.last`"),
    "hangs": ("pruned", "timeout", {1: 2.0}, "limits.seconds: allows 4"),
    "no memory": ("pruned", "oom", {}, "MemoryError"),
    "too large": ("pruned", "oom", {}, "GB, and limits.memory_gb is 0.3"),
    "floods": ("complete", "complete", {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}, ""),
    "deaf": ("pruned", "diverged", {}, ""),
}


def write_study(folder: Path, script: str, **changes: Any) -> None:
    """Write the study `scripts` of a script into a folder."""
    (folder / "train.py").write_text(LOGGED + script)
    tree: dict[str, Any] = {
        "command": [sys.executable, "train.py", "{x}"],
        "metric": {"pattern": PATTERN},
        "steps": {"rungs": 4, "last": 40},
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "pruner": "none",
        "budget": {"trials": 4},
    }
    (folder / "scripts.yaml").write_text(dump_yaml(tree | changes))


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the lines that the scripts have written to a file."""
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read(folder: Path) -> Snapshot:
    with open_readonly(f"sqlite:///{folder}/runs/hpo.db") as store:
        return read_snapshot(store, "scripts")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder. Afterwards no process of its scripts is left."""
    yield tmp_path
    assert until(lambda: not worker_processes(tmp_path), 20)
    assert [pid for pid in processes_with("train.py") if cwd_of(pid) == tmp_path] == []
    assert [pid for pid in processes_with("left-behind") if cwd_of(pid) == tmp_path] == []


def cwd_of(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def launched(folder: Path, *options: str, **env: str) -> "subprocess.Popen[str]":
    """Start a launch of the study in a process."""
    command = [sys.executable, "-m", "hpo", "launch", "--study", "scripts", "--quiet", *options]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(**env), **streams)  # type: ignore[call-overload,no-any-return]


def test_every_way_in_which_a_script_can_end_has_its_result(folder: Path) -> None:
    cases = list(EXPECTED)
    space = {"x": {"choices": cases}}
    changes = {"limits": {"seconds": 4.0, "memory_gb": 0.3}, "sampler": "grid", "budget": {"trials": len(cases)}}
    write_study(folder, WAYS, space=space, **changes)
    hpo("launch", "--study", "scripts", "--workers", "3", "--quiet", cwd=folder)
    snapshot = read(folder)
    found = {}
    for trial in snapshot.trials:
        text = f"{trial.user_attrs.get('hpo:error', '')} {trial.user_attrs.get('hpo:note', '')}"
        case = trial.params["x"]
        curve = {rung: value for rung, value in trial.intermediate_values.items() if value < 1e300}
        found[case] = (trial.state.value, trial.user_attrs[END_REASON], curve, EXPECTED[case][3] in text or text)
        rows = list(read_metrics(folder / f"runs/scripts/trials/{trial.number:04}/metrics.jsonl"))
        assert [row["rung"] for row in rows] == sorted(trial.intermediate_values), case
    assert found == {case: (*expected[:3], True) for case, expected in EXPECTED.items()}
    starts = Counter(start["argv"][0] for start in lines(folder, "starts.jsonl"))
    assert starts == Counter(cases) + Counter(["killed once"])
    shown = hpo("show", str(next(t.number for t in snapshot.trials if t.params["x"] == "exits 1")), cwd=folder).stdout
    assert "ValueError: bad lr" in shown
    logs = hpo("logs", str(next(t.number for t in snapshot.trials if t.params["x"] == "early")), cwd=folder)
    assert logs.stderr.splitlines()[-1] == "step 30: val loss 2.0"


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
    snapshot = read(folder)
    assert Counter(trial.state.value for trial in snapshot.trials) == {"complete": n}
    starts, ends = lines(folder, "starts.jsonl"), lines(folder, "ends.jsonl")
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
        assert until(lambda: len(lines(folder, "starts.jsonl")) >= 2)
        time.sleep(0.8)
        kill_9(folder, launch, victim)
        if victim == "workers":
            launch.communicate(timeout=60)
            assert launch.returncode == 0
    assert until(lambda: [pid for pid in processes_with("train.py") if cwd_of(pid) == folder] == [], 10)
    hpo("launch", "--study", "scripts", "--workers", "2", "--quiet", cwd=folder, HPO_LEASE_S="2", PAUSE="0.01")
    check_exact(folder, 4)
    assert len(lines(folder, "starts.jsonl")) > 4


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
    first, second = lines(folder, "resumed.jsonl")
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
    snapshot = read(folder)
    assert [trial.state.value for trial in snapshot.trials] == ["waiting"]
    assert {event.event_type for event in snapshot.events} & {"preempted", "signal", "lost", "error"} == {"preempted"}
    hpo("launch", "--study", "scripts", "--quiet", cwd=folder, PAUSE="0.01")
    check_exact(folder, 1)
    assert lines(folder, "resumed.jsonl")[1]["step"] >= 10  # the script has saved its state after SIGTERM


def test_killed_trial_ends_between_its_reports(folder: Path) -> None:
    write_study(folder, "say(10, 1.0)\ntime.sleep(600)\n", budget={"trials": 1})
    with launched(folder) as launch:
        assert until(lambda: (folder / "runs/scripts/trials/0000/metrics.jsonl").exists())
        hpo("kill", "0", "--study", "scripts", cwd=folder)
        launch.communicate(timeout=60)
    assert read(folder).trials[0].user_attrs[END_REASON] == "killed"


def test_paused_commands_continue_from_their_checkpoints_when_they_are_promoted(folder: Path) -> None:
    space = {"x": {"choices": [0.125, 0.5, 0.25, 0.75]}}
    changes = {"sampler": "grid", "pruner": {"name": "asha", "factor": 2}, "steps": {"rungs": 4, "last": 40}}
    write_study(folder, TRAIN, space=space, **changes)
    hpo("launch", "--study", "scripts", "--quiet", cwd=folder, PAUSE="0.005")
    snapshot = read(folder)
    states = Counter(trial.state.value for trial in snapshot.trials)
    assert states["complete"] >= 1
    assert sum(states.values()) == 4
    best = min((t for t in snapshot.trials if t.values), key=lambda t: t.values[0])
    assert best.params["x"] == 0.125
    resumed = [line for line in lines(folder, "resumed.jsonl") if line["attempt"] > 1]
    assert resumed
    assert all(line["step"] >= 10 for line in resumed)
    pruned = [t.number for t in snapshot.trials if t.state.value == "pruned"]
    assert pruned
    assert not any((folder / f"runs/scripts/trials/{n:04}/files/checkpoint").exists() for n in pruned)


def test_export_train_confirm_and_ablate_work_on_a_command(folder: Path) -> None:
    words = [sys.executable, "train.py", "{x}", "{n}", "{seed}"]
    space = {"x": {"low": 0.0, "high": 1.0}, "n": {"low": 1, "high": 4}}
    script = "say(40, float(sys.argv[1]) + int(sys.argv[2]) * 0 + (int(sys.argv[3]) * 7919 % 101) / 1000)\n"
    baseline = [{"x": 0.9, "n": 2}]
    write_study(folder, script, command=words, space=space, baseline=baseline, baseline_seeds=2, budget={"trials": 6})
    hpo("launch", "--study", "scripts", "--quiet", cwd=folder)
    seeds = [start["argv"][2] for start in lines(folder, "starts.jsonl")]
    assert seeds[:2] == ["0", "1"]
    hpo("export", "--study", "scripts", "-o", "best.yaml", cwd=folder)
    best = parse_yaml((folder / "best.yaml").read_text())
    trained = hpo("train", "best.yaml", cwd=folder).stdout
    assert f"rung 4  val_loss {best['provenance']['value']:.4f}" in trained
    assert list(folder.glob("runs/train/best/reports-*.jsonl")), "by which --resume counts the attempts"
    said = hpo("confirm", "--study", "scripts", "--seeds", "3", "--top", "1", cwd=folder)
    assert re.search(r"better: paired difference -0\.\d+ from the baseline", said.stderr + said.stdout)
    new = [start["argv"][2] for start in lines(folder, "starts.jsonl")][-6:]
    assert Counter(new) == {"1000": 2, "1001": 2, "1002": 2}
    said = hpo("ablate", "--study", "scripts", "--seeds", "3", cwd=folder)
    assert "x lowers val_loss" in said.stderr + said.stdout
    checks = hpo("doctor", cwd=folder).stdout
    assert "error" not in checks


def test_confirm_without_a_baseline_or_a_seed_says_what_is_missing(folder: Path) -> None:
    write_study(folder, "say(40, sys.argv[1])\n")
    hpo("launch", "--study", "scripts", "--quiet", cwd=folder)
    said = hpo("confirm", "--study", "scripts", cwd=folder, status=2).stderr
    assert "has no baseline to compare with; start another study with `baseline: [{x: ...}]`" in said
    said = hpo("launch", "--study", "scripts", "--confirm", cwd=folder, status=2).stderr
    assert "--confirm: must be omitted, because the command of scripts has no {seed}" in said


def test_command_of_the_storage_runs_only_where_it_is_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_study(folder, "say(40, sys.argv[1])\n")
    hpo("launch", "--study", "scripts", "--trials", "3", "--quiet", cwd=folder)
    hpo("enqueue", "--study", "scripts", "--set", "x=0.5", cwd=folder)
    other = tmp_path_factory.mktemp("other")
    (other / "train.py").write_text((folder / "train.py").read_text())
    storage = ("--storage", f"sqlite:///{folder}/runs/hpo.db")
    for command in ("export", "worker", "confirm", "ablate", "enqueue --set x=0.25"):
        said = hpo(*command.split(), *storage, cwd=other, status=2).stderr
        assert f"its command {sys.executable} train.py '{{x}}' is not run" in said, command
    assert not (other / "starts.jsonl").exists()
    for command in ("status", "trials", "show 1", "best", "studies"):
        hpo(*command.split(), *storage, cwd=other)
    allow = ("--allow-train", f"{sys.executable} train.py {{x}}")
    hpo("worker", *storage, *allow, "--out", str(folder / "runs"), cwd=other)
    assert len(lines(other, "starts.jsonl")) == 1
    hpo("enqueue", "--study", "scripts", "--set", "x=0.125", cwd=folder)
    follow = [sys.executable, "-m", "hpo", "worker", "--follow", *storage]
    for more, expected in (((), "scripts: skipped for 60 s"), (allow, "scripts: trial")):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen([*follow, *more], cwd=other, env=environment(), **streams) as process:  # type: ignore[call-overload]
            line = process.stdout.readline()
            assert line.startswith(expected), line
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def test_missing_program_is_reported_before_any_trial(folder: Path) -> None:
    write_study(folder, "", command=["no-such-program", "{x}"])
    said = hpo("launch", "--study", "scripts", "--quiet", cwd=folder, status=1).stderr
    assert "command: there is no program no-such-program on this machine" in said
    assert read(folder).trials == []


TORCHRUN = """
import torch.distributed as dist
import hpo
dist.init_process_group("gloo")
import torch
rank = dist.get_rank()
log("starts.jsonl", argv=sys.argv[1:], rank=rank)
value = torch.tensor(float(sys.argv[1]) + rank)
dist.all_reduce(value)
for step in (10, 20, 30, 40):
    hpo.current_trial().report(step, val_loss=value / 2 - 0.5 + rank * 100)
    if sys.argv[1] > "0.5" and step == 20:
        time.sleep(600)
"""


@pytest.mark.exhaustive
def test_torchrun_with_two_ranks_is_one_trial(folder: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py", "{x}"]
    space = {"x": {"choices": [0.25, 0.75]}}
    changes = {"sampler": "grid", "limits": {"seconds": 45.0}, "metric": None, "budget": {"trials": 2}}
    write_study(folder, TORCHRUN, command=words, space=space, **changes)
    hpo("launch", "--study", "scripts", "--quiet", cwd=folder)
    found = {t.params["x"]: (t.state.value, t.intermediate_values) for t in read(folder).trials}
    assert found[0.25] == ("complete", {r: pytest.approx(0.25) for r in (1, 2, 3, 4)})
    assert found[0.75] == ("pruned", {r: pytest.approx(0.75) for r in (1, 2)})
    ranks = [(line["trial"], line["rank"]) for line in lines(folder, "starts.jsonl") if "rank" in line]
    assert sorted(ranks) == [(0, 0), (0, 1), (1, 0), (1, 1)]

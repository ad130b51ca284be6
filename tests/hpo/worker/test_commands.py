"""Studies of commands from end to end: every way in which a script can end, permissions, confirm and ablate."""

import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.config.yaml import parse_yaml
from hpo.runs.metrics import read_metrics
from hpo.storage.attributes import END_REASON
from tests.support.command import environment, hpo
from tests.support.script_study import (
    check_nothing_left,
    read_lines,
    read_study,
    write_study,
)

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


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    check_nothing_left(tmp_path)


def test_every_way_in_which_a_script_can_end_has_its_result(folder: Path) -> None:
    cases = list(EXPECTED)
    space = {"x": {"choices": cases}}
    changes = {"limits": {"seconds": 4.0, "memory_gb": 0.3}, "sampler": "grid", "budget": {"trials": len(cases)}}
    write_study(folder, WAYS, space=space, **changes)
    hpo("launch", "--study", "scripts", "--workers", "3", "--quiet", cwd=folder)
    snapshot = read_study(folder)
    found = {}
    for trial in snapshot.trials:
        text = f"{trial.user_attrs.get('hpo:error', '')} {trial.user_attrs.get('hpo:note', '')}"
        case = trial.params["x"]
        curve = {rung: value for rung, value in trial.intermediate_values.items() if value < 1e300}
        found[case] = (trial.state.value, trial.user_attrs[END_REASON], curve, EXPECTED[case][3] in text or text)
        rows = list(read_metrics(folder / f"runs/scripts/trials/{trial.number:04}/metrics.jsonl"))
        assert [row["rung"] for row in rows] == sorted(trial.intermediate_values), case
    assert found == {case: (*expected[:3], True) for case, expected in EXPECTED.items()}
    starts = Counter(start["argv"][0] for start in read_lines(folder, "starts.jsonl"))
    assert starts == Counter(cases) + Counter(["killed once"])
    shown = hpo("show", str(next(t.number for t in snapshot.trials if t.params["x"] == "exits 1")), cwd=folder).stdout
    assert "ValueError: bad lr" in shown
    logs = hpo("logs", str(next(t.number for t in snapshot.trials if t.params["x"] == "early")), cwd=folder)
    assert logs.stderr.splitlines()[-1] == "step 30: val loss 2.0"


def test_export_train_confirm_and_ablate_work_on_a_command(folder: Path) -> None:
    words = [sys.executable, "train.py", "{x}", "{n}", "{seed}"]
    space = {"x": {"low": 0.0, "high": 1.0}, "n": {"low": 1, "high": 4}}
    script = "say(40, float(sys.argv[1]) + int(sys.argv[2]) * 0 + (int(sys.argv[3]) * 7919 % 101) / 1000)\n"
    baseline = [{"x": 0.9, "n": 2}]
    write_study(folder, script, command=words, space=space, baseline=baseline, baseline_seeds=2, budget={"trials": 6})
    hpo("launch", "--study", "scripts", "--quiet", cwd=folder)
    seeds = [start["argv"][2] for start in read_lines(folder, "starts.jsonl")]
    assert seeds[:2] == ["0", "1"]
    hpo("export", "--study", "scripts", "-o", "best.yaml", cwd=folder)
    best = parse_yaml((folder / "best.yaml").read_text())
    trained = hpo("train", "best.yaml", cwd=folder).stdout
    assert f"rung 4  val_loss {best['provenance']['value']:.4f}" in trained
    assert list(folder.glob("runs/train/best/reports-*.jsonl")), "by which --resume counts the attempts"
    said = hpo("confirm", "--study", "scripts", "--seeds", "3", "--top", "1", cwd=folder)
    assert re.search(r"better: paired difference -0\.\d+ from the baseline", said.stderr + said.stdout)
    new = [start["argv"][2] for start in read_lines(folder, "starts.jsonl")][-6:]
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
    assert len(read_lines(other, "starts.jsonl")) == 1
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
    assert read_study(folder).trials == []


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
    found = {t.params["x"]: (t.state.value, t.intermediate_values) for t in read_study(folder).trials}
    assert found[0.25] == ("complete", {r: pytest.approx(0.25) for r in (1, 2, 3, 4)})
    assert found[0.75] == ("pruned", {r: pytest.approx(0.75) for r in (1, 2)})
    ranks = [(line["trial"], line["rank"]) for line in read_lines(folder, "starts.jsonl") if "rank" in line]
    assert sorted(ranks) == [(0, 0), (0, 1), (1, 0), (1, 1)]

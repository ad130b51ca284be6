"""`hpo launch` as a user runs it: separate processes, signals, and the files that remain."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.commands.launch import result_lines
from hpo.config.yaml import dump_yaml
from hpo.launcher.options import LaunchOptions, resume_command
from hpo.storage.engine import open_readonly
from hpo.study.load import load_study
from hpo.worker.events import event_line
from tests.support.command import have_reported, hpo, start_launch, until, worker_processes
from tests.support.planted import planted_study as planted
from tests.support.tiny import corpus

pytestmark = pytest.mark.usefixtures("here")


def test_launch_prints_the_best_configuration_what_changed_and_what_to_type_next(here: Path) -> None:
    process = start_launch("--study", str(planted(here)), "--workers", "2")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "best: trial" in stdout
    assert "baseline 1.5000" in stdout
    assert "0.5000 ->" in stdout
    typed = [text.strip() for text in stdout.splitlines() if text.startswith("  hpo ")]
    assert [text.split()[1] for text in typed] == ["confirm", "export", "train", "dashboard"]
    assert Path("runs/planted/best.yaml").is_file()
    kept, given = (load_study(path).spec() | {"name": ""} for path in ("runs/planted/study.yaml", "planted.yaml"))
    assert kept == given, "what was launched can be launched again"
    assert "started (baseline)" in stderr
    # what it says to type next works
    for text in typed[:2]:
        found = subprocess.run([sys.executable, "-m", *text.split()], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr


def test_a_confirmation_is_suggested_in_the_same_place_and_only_where_a_seed_can_vary(here: Path) -> None:
    hpo("launch", "--study", str(planted(here, budget={"trials": 2})), "--quiet", cwd=here)
    slurm = LaunchOptions("planted", "sqlite:///runs/hpo.db", workers=3, on="slurm", slurm=("partition=a b",))
    ray = LaunchOptions("planted", "sqlite:///runs/hpo.db", on="ray", address="head:6379", gpus_per_worker=0.5)
    with open_readonly(slurm.storage) as store:
        snapshot = read_snapshot(store, "planted")
    lines = result_lines(snapshot, Path("best.yaml"), slurm)
    assert "  hpo confirm --study planted --workers 3 --on slurm --slurm 'partition=a b'" in lines
    lines = result_lines(snapshot, Path("best.yaml"), ray)
    assert "  hpo confirm --study planted --workers 1 --on ray --address head:6379 --gpus-per-worker 0.5" in lines
    gpus = LaunchOptions("planted", "sqlite:///runs/hpo.db", gpus=("0", "1"), per_gpu=2)
    assert "  hpo confirm --study planted --gpus 0,1 --per-gpu 2" in result_lines(snapshot, Path("best.yaml"), gpus)
    assert resume_command(gpus) == "hpo launch --study planted --gpus 0,1 --per-gpu 2"
    assert resume_command(slurm).startswith("hpo launch --study planted --workers 3 --on slurm")
    script = {"command": ["sh", "-c", "echo loss: 1"], "metric": {"pattern": "(?P<loss>[0-9]+)"}, "objective": "loss"}
    keys = {"steps": {"rungs": 1, "last": 1}, "space": {"lr": {"low": 0.1, "high": 1.0}}, "budget": {"trials": 1}}
    (here / "unseeded.yaml").write_text(dump_yaml({**script, **keys}))
    said = hpo("launch", "--study", "unseeded.yaml", cwd=here).stdout
    assert "hpo export" in said
    assert "hpo confirm" not in said


def test_a_search_that_finds_nothing_better_exports_the_baseline_and_has_nothing_to_confirm(here: Path) -> None:
    path = planted(here, base={"x": 0.0}, budget={"trials": 3})
    said = hpo("launch", "--study", str(path), cwd=here).stdout
    assert "the best trial is the baseline: no other trial is better" in said
    assert "hpo export --study planted -o best.yaml" in said
    assert "hpo confirm" not in said
    origin = "trial 0 of planted, the baseline: no other trial of the search is better"
    assert origin in hpo("export", "-o", "best.yaml", cwd=here).stderr


def test_launching_again_keeps_what_the_file_omits_before_the_data_are_prepared(here: Path) -> None:
    base = {"data": {"name": "text", "path": corpus()}, "tokenizer": {"name": "bytes"}}
    base |= {"model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16}, "run": {"tokens": 4096, "rungs": 2}}
    (here / "a.yaml").write_text(dump_yaml({"base": base, "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2}}}))
    words = ("launch", "--study", "a.yaml", "--workers", "1", "--plain")
    hpo(*words, "--trials", "1", "--set", "data.split_seed=3", cwd=here)
    again = hpo(*words, "--trials", "2", cwd=here).stderr
    note = "note: a.yaml does not state these fields, so the study keeps its values: base.data.split_seed 3 (default 0)"
    assert note in again.splitlines()
    assert "trial 1: complete" in again


def test_quiet_prints_only_what_was_found(here: Path) -> None:
    process = start_launch("--study", str(planted(here)), "--workers", "1", "--quiet")
    _, stderr = process.communicate(timeout=60)
    assert len(stderr.splitlines()) == 1


def test_dry_run_checks_and_leaves_nothing(here: Path) -> None:
    process = start_launch("--study", str(planted(here)), "--dry-run")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "budget 12 trials" in stderr
    assert not Path("runs").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_finishes_the_rung_and_requeues_and_launching_again_continues(
    here: Path, number: signal.Signals, status: int
) -> None:
    path = planted(here, base={"pause": 0.3}, budget={"trials": 6}, train="curves:noted")
    process = start_launch("--study", str(path), "--workers", "2")
    assert until(lambda: have_reported(here, 2))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "stopping" in stderr
    assert "Traceback" not in stderr
    assert worker_processes(here) == []
    with open_readonly("runs/hpo.db") as store:
        assert read_snapshot(store, "planted").slots["leased"] == 0
    again = start_launch("--study", str(path), "--workers", "2")
    again.communicate(timeout=60)
    assert again.returncode == 0
    with open_readonly("runs/hpo.db") as store:
        snapshot = read_snapshot(store, "planted")
        assert len(snapshot.trials) == 6
        assert trial_counts(snapshot)["running"] == trial_counts(snapshot)["waiting"] == 0


def test_second_signal_stops_at_once_and_nothing_is_lost(here: Path) -> None:
    path = planted(here, base={"pause": 1.5}, budget={"trials": 2})
    process = start_launch("--study", str(path), "--workers", "2")
    assert until(lambda: have_reported(here, 2))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert worker_processes(here) == []
    assert time.monotonic() - began < 30
    with open_readonly("runs/hpo.db") as store:
        snapshot = read_snapshot(store, "planted")
        assert trial_counts(snapshot)["running"] + trial_counts(snapshot)["waiting"] == 2
        assert snapshot.slots["leased"] == 0


@pytest.mark.usefixtures("new_interpreters")
def test_workers_end_when_their_launcher_is_killed(here: Path) -> None:
    path = planted(here, base={"pause": 0.3}, budget={"trials": 100})
    process = start_launch("--study", str(path), "--workers", "2")
    assert until(lambda: have_reported(here, 2))
    process.kill()
    process.communicate()
    assert until(lambda: worker_processes(here) == [])
    with open_readonly("runs/hpo.db") as store:
        assert read_snapshot(store, "planted").slots["leased"] == 0


def test_launch_fails_with_the_last_words_of_a_worker_that_cannot_work(here: Path) -> None:
    path = planted(here)
    module = here / "curves.py"
    module.write_text(module.read_text() + "\nimport os\nif os.environ.get('HPO_EVENTS'):\n    os._exit(7)\n")
    process = start_launch("--study", str(path), "--workers", "1")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "worker 1 ended with status 7" in stderr


def test_every_event_has_a_line() -> None:
    events = [
        {"event": "start", "trial": 3, "kind": "baseline", "attempt": 2},
        {"event": "rung", "trial": 3, "rung": 1, "value": None},
        {"event": "pruned", "trial": 3, "rung": 1, "value": 2.0},
        {"event": "error", "trial": 3, "rung": 0, "value": None, "error": "boom"},
        {"event": "exit", "status": 1},
    ]
    assert [event_line(event, 4) for event in events] == [
        "trial 3: started (baseline), attempt 2",
        "trial 3: rung 1/4, no finite loss",
        "trial 3: pruned at rung 1/4, 2.0000",
        "trial 3: error at rung 0/4: boom",
        "ended with status 1",
    ]

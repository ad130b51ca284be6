"""`hpo limits` finds the largest batch size by trial runs in separate processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from hpo.commands.limits import largest_useful_batch, read_train_config, trial_run
from hpo.config.yaml import dump_yaml
from hpo.errors import WorkFailed
from model.data.prepare import prepare
from model.section import updated
from tests.support.cases import exhaustive
from tests.support.command import environment, hpo
from tests.support.tiny import corpus, tiny

GB = 10**9
# About half a megabyte for each sequence
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context": 128}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, without earlier measurements."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))


def written(folder: Path, **more) -> Path:
    """Write a configuration whose batches take megabytes."""
    text = corpus()
    tree = {
        "data": {"name": "text", "path": text},
        "tokenizer": {"name": "bytes"},
        "model": SHAPE,
        "run": {"tokens": 2**16, "rungs": 1, "batch_size": 2, "device": "cpu"},
    }
    path = folder / "config.yaml"
    path.write_text(dump_yaml(tree | more))
    return path


@pytest.mark.parametrize(
    ("values", "cap", "why"),
    [
        ({"run.tokens": 10 * 16, "run.rungs": 2, "run.batch_size": 1}, 5, "rung"),
        ({"run.tokens": 1000 * 64, "run.align": 20 * 64, "run.grad_accum": 2, "run.rungs": 10}, 200, "rung"),
        ({"run.tokens": 2**40}, None, "whole training text"),
    ],
)
def test_a_batch_is_no_larger_than_makes_sense(values, cap, why):
    config = tiny(values)
    found, reason = largest_useful_batch(config, prepare(config.data, config.tokenizer))
    assert why in reason
    assert cap is None or found == cap
    assert updated(config, {"run.batch_size": found})
    if cap:
        with pytest.raises(ValidationError):
            updated(config, {"run.batch_size": cap + 1})


def test_the_largest_batch_is_found_by_trying(tmp_path, cache):
    path = written(tmp_path)
    done = hpo("limits", str(path), "--memory", "0.15", "--format", "json", cwd=tmp_path)
    found = json.loads(done.stdout)
    tried = {row["batch_size"]: row for row in found if row["measured_gb"]}
    best = max(batch for batch, row in tried.items() if row["fits"])
    assert tried[best]["measured_gb"] <= 0.15
    assert tried[best]["tokens_per_second"] > 0
    assert f"run.batch_size={best} fits, " in done.stderr
    assert "does not fit: can't allocate memory" in done.stderr
    assert done.stderr.splitlines()[-1] == f"use: --set run.batch_size={best}"
    assert [row["batch_size"] for row in found] == sorted(row["batch_size"] for row in found)
    assert 10 < best < 300  # the rung allows up to 512


def test_where_all_fit_the_reason_for_the_end_is_reported(tmp_path, cache):
    path = written(tmp_path, run={"tokens": 8 * 128, "rungs": 2, "batch_size": 1, "device": "cpu"})
    done = hpo("limits", str(path), "--pack", "2", cwd=tmp_path)
    assert (
        "run.batch_size=4 fits; larger batches were not tested, where a rung of run.tokens=1024 is one up"
        in done.stderr
    )
    assert done.stderr.splitlines()[-1] == "use: --set run.batch_size=4 --pack 2"
    assert done.stdout.split()[:5] == ["batch_size", "estimated_gb", "measured_gb", "tokens_per_second", "fits"]


def test_where_none_fits_the_status_says_so(tmp_path, cache):
    done = hpo("limits", str(written(tmp_path)), "--memory", "0.001", cwd=tmp_path, status=3)
    assert "run.batch_size: none fits in 0.00 GB, 1 was the smallest tested" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "0"], "--memory: must be above 0, in GB, got 0"),
        (["--memory", "nan"], "--memory: must be above 0, in GB, got nan"),
        (["--memory", "1e6"], "--memory: must be at most "),
        (
            ["--set", "run.batch_size=4"],
            "--set run.batch_size=4: must not set run.batch_size, which this command searches; omit it",
        ),
        (["--set", "model.n_hed=4"], "--set model.n_hed: no such field; did you mean model.n_head?"),
        (["--set", "run.device=mps"], "run.device: no mps device on this machine"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, arguments, message):
    done = hpo("limits", str(written(tmp_path)), *arguments, cwd=tmp_path, status=2)
    assert message in done.stderr
    assert not done.stdout


def test_a_file_that_is_no_configuration_of_ours_is_refused(tmp_path):
    path = written(tmp_path, provenance={"train": "mine:train"})
    assert (
        "provenance.train: must be model.train.trainer:Trainer"
        in hpo("limits", str(path), cwd=tmp_path, status=2).stderr
    )
    assert "no base 'nowhere'" in hpo("limits", "nowhere", cwd=tmp_path, status=2).stderr
    assert "no such file" in hpo("limits", "nowhere.yaml", cwd=tmp_path, status=2).stderr


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def ended(pid: int) -> bool:
    """Return whether a process has ended; its parent may not have read the exit status yet."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


def awaited(condition, subject: str):
    """Wait until a condition is true and return its value."""
    end = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < end, f"there is still no {subject}"
        time.sleep(0.05)
    return value


@pytest.mark.usefixtures("new_interpreters")
@pytest.mark.parametrize("number", [exhaustive(signal.SIGINT), exhaustive(signal.SIGTERM)])
def test_a_signal_ends_the_try_too(tmp_path, number):
    path = written(tmp_path, run={"tokens": 2**24, "rungs": 1, "batch_size": 1, "device": "cpu"})
    command = [sys.executable, "-m", "hpo", "limits", str(path), "--memory", "2"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        (child,) = awaited(lambda: children(process.pid), "try")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    awaited(lambda: ended(child), "end of the try")


@pytest.mark.usefixtures("new_interpreters")
def test_a_try_that_the_system_kills_does_not_fit():
    answers, others = [], set(children(os.getpid()))  # for example the server of other tests
    trying = threading.Thread(target=lambda: answers.append(trial_run(tiny(), 1, GB)))
    trying.start()
    (child,) = awaited(lambda: set(children(os.getpid())) - others, "try")
    os.kill(child, signal.SIGKILL)
    trying.join()
    assert answers == [{"out_of_memory": "the system ended it with SIGKILL"}]


def test_a_try_that_fails_otherwise_says_why():
    broken = tiny({"data.path": os.devnull})
    with pytest.raises(WorkFailed, match=r"run\.batch_size=4: data"):
        trial_run(broken, 1, GB)


def test_a_configuration_is_read_with_what_is_set(tmp_path):
    assert read_train_config(written(tmp_path), ["model.n_layer=7"]).model.n_layer == 7

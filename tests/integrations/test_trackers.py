"""MLflow, W&B and TensorBoard as their own clients show what a launch has copied to them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.storage.engine import open_readonly
from tests.support.command import environment, hpo, until
from tests.support.planted import gpt_study
from tests.support.wandb_files import offline_runs

pytestmark = pytest.mark.integrations

# Trials 0 and 1 are complete, 2 is pruned, 3 fails, 4 diverges. Trial 1 waits for the file `go` after its second rung.
MODULE = """
import time
from pathlib import Path

from pydantic import BaseModel


class Config(BaseModel):
    x: float = 0.5
    seed: int = 0


def train(config):
    for rung in range(1, 5):
        if config.x == 0.7 and rung == 3:
            raise ValueError("bad x")
        while config.x == 0.2 and rung == 3 and not Path("go").exists():
            time.sleep(0.05)
        loss = float("nan") if config.x == 0.8 and rung == 3 else 1.0 + config.x + 1.0 / rung
        yield rung, {"loss": loss, "half": loss / 2}
"""
STUDY: dict[str, Any] = {
    "train": "curves:train",
    "config": "curves:Config",
    "objective": "loss",
    "rungs": 4,
    "space": {"x": {"choices": [0.1, 0.2, 0.6, 0.7, 0.8]}},
    "baseline": [],
    "sampler": "grid",
    "pruner": {"name": "threshold", "upper": 1.9, "warmup_rungs": 2},
    "budget": {"trials": 5},
}
STATUSES = ["complete", "complete", "pruned", "error", "diverged"]
CURVES = [[2.1, 1.6, 1.1 + 1 / 3, 1.35], [2.2, 1.7, 1.2 + 1 / 3, 1.45], [2.6, 2.1, 1.6 + 1 / 3], [2.7, 2.2], [2.8, 2.3]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """Run an MLflow server on loopback; yield its URL."""
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments], stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
        return False

    try:
        assert until(answers, 120), (folder / "server.log").read_text()
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Path:
    """A study that was copied to all trackers. Its first launch was stopped while trial 1 had two of its four rungs."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "curves.py").write_text(MODULE)
    (folder / "scene.yaml").write_text(dump_yaml({**STUDY, "track": ["mlflow", "wandb", "tensorboard"]}))
    clients = {"MLFLOW_TRACKING_URI": mlflow_url, "WANDB_MODE": "offline", "HPO_TRACK_WAIT": "120"}
    launch = subprocess.Popen(
        [sys.executable, "-m", "hpo", "launch", "--study", "scene"],
        cwd=folder,
        env=environment(**clients),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert until(lambda: len(list(folder.glob("runs/scene/wandb/offline-run-*"))) == 2, 90)
    assert until(lambda: len(list(folder.glob("runs/scene/tensorboard/*/events*"))) == 2, 30)
    assert until(lambda: len(mlflow_runs(mlflow_url, "scene")) == 2, 90)
    launch.send_signal(signal.SIGTERM)
    _, messages = launch.communicate()
    assert launch.returncode == 128 + signal.SIGTERM, messages
    assert statuses_in_mlflow(mlflow_url, "scene")[1:] == ["interrupted"]
    (folder / "go").touch()
    done = hpo("launch", "--study", "scene", cwd=folder, status=None, **clients)
    assert "does not have all values" not in done.stderr
    return folder


def mlflow_runs(url: str, experiment: str) -> list[Any]:
    """Return the runs of an experiment, in the order of their trials."""
    from mlflow import MlflowClient

    client = MlflowClient(url)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    return sorted(runs, key=lambda run: int(run.data.tags["hpo.trial"]))


def statuses_in_mlflow(url: str, experiment: str) -> list[str]:
    return [run.data.tags.get("hpo.status", "") for run in mlflow_runs(url, experiment)]


def snapshot_of(folder: Path, name: str) -> Snapshot:
    with open_readonly(f"sqlite:///{folder}/runs/hpo.db") as store:
        snapshot = read_snapshot(store, name)
        for trial in snapshot.trials:
            _ = trial.params
        return snapshot


def test_mlflow_has_one_run_for_each_trial_with_each_point_once(tracked: Path, mlflow_url: str) -> None:
    from mlflow import MlflowClient

    client, runs = MlflowClient(mlflow_url), mlflow_runs(mlflow_url, "scene")
    assert [run.info.run_name for run in runs] == [f"scene-{i:04}" for i in range(5)]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED", "KILLED", "FAILED", "KILLED"]
    assert [run.data.tags["hpo.status"] for run in runs] == STATUSES
    assert [run.data.params for run in runs] == [{"x": str(x)} for x in (0.1, 0.2, 0.6, 0.7, 0.8)]
    assert {run.data.tags["hpo.study"] for run in runs} == {"scene"}
    assert all(run.info.end_time >= run.info.start_time > 1.6e12 for run in runs)
    for name, scale in (("loss", 1.0), ("half", 0.5)):
        for run, curve in zip(runs, CURVES, strict=True):
            points = client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in points] == list(range(1, len(curve) + 1))
            assert [point.value for point in points] == pytest.approx([scale * value for value in curve])


def test_wandb_has_one_offline_run_for_each_trial_in_the_group_of_the_study(tracked: Path) -> None:
    runs = offline_runs(tracked / "runs/scene/wandb")
    assert [run.name for run in runs] == [f"scene-{i:04}" for i in range(5)], "the part of an earlier launch is gone"
    assert {(run.group, run.project, run.job_type) for run in runs} == {("scene", "hpo", "search")}
    assert [run.config["x"] for run in runs] == [0.1, 0.2, 0.6, 0.7, 0.8]
    assert [run.tags for run in runs] == [["search", status] for status in STATUSES]
    assert [run.summary["status"] for run in runs] == STATUSES
    assert [run.exit_code for run in runs] == [0, 0, 0, 1, 0]
    assert len({run.id for run in runs}) == 5
    for run, curve in zip(runs, CURVES, strict=True):
        assert [row["_step"] for row in run.history] == list(range(1, len(curve) + 1))
        assert [row["loss"] for row in run.history] == pytest.approx(curve)
        assert [row["half"] for row in run.history] == pytest.approx([value / 2 for value in curve])


def test_tensorboard_has_one_run_for_each_trial_with_its_parameters_and_status(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    folder = tracked / "runs/scene/tensorboard"
    for number, (curve, x) in enumerate(zip(CURVES, (0.1, 0.2, 0.6, 0.7, 0.8), strict=True)):
        events = EventAccumulator(str(folder / f"{number:04}"))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == list(range(1, len(curve) + 1))
        assert [event.value for event in events.Scalars("loss")] == pytest.approx(curve)
        data = events.PluginTagToContent(metadata.PLUGIN_NAME)
        start = metadata.parse_session_start_info_plugin_data(data[metadata.SESSION_START_INFO_TAG])
        end = metadata.parse_session_end_info_plugin_data(data[metadata.SESSION_END_INFO_TAG])
        assert start.hparams["x"].number_value == x
        assert end.status == (2 if number == 3 else 1)  # failure and success
        (table,) = events.Tensors("tags")[-1].tensor_proto.string_val
        assert f"status | {STATUSES[number]}" in table.decode()
        assert "study | scene" in table.decode()


def test_tracker_that_has_everything_gets_nothing_again(tracked: Path, mlflow_url: str) -> None:
    before = sorted(path for path in (tracked / "runs/scene").glob("*board/*/*"))
    for name in ("mlflow", "wandb", "tensorboard"):
        hpo("track", name, "--study", "scene", cwd=tracked, MLFLOW_TRACKING_URI=mlflow_url, WANDB_MODE="offline")
    assert len(mlflow_runs(mlflow_url, "scene")) == 5
    assert len(offline_runs(tracked / "runs/scene/wandb")) == 5
    assert sorted(path for path in (tracked / "runs/scene").glob("*board/*/*")) == before


def test_runs_of_a_comparison_have_their_arm_and_seed(here: Path, mlflow_url: str) -> None:
    (here / "curves.py").write_text(MODULE)
    keys = {key: STUDY[key] for key in ("train", "config", "objective", "rungs")}
    arms = {"small": {"x": 0.1}, "large": {"x": 0.3}}
    (here / "arms.yaml").write_text(dump_yaml({**keys, "arms": arms, "seeds": [1, 2]}))
    hpo(
        "launch", "--study", "arms", "--track", "mlflow", cwd=here, MLFLOW_TRACKING_URI=mlflow_url, HPO_TRACK_WAIT="120"
    )
    runs = mlflow_runs(mlflow_url, "arms")
    assert [(run.data.tags["hpo.arm"], run.data.params) for run in runs] == [
        (arm, {"x": str(x), "seed": str(seed)}) for seed in (1, 2) for arm, x in (("small", 0.1), ("large", 0.3))
    ]
    assert {run.data.tags["hpo.kind"] for run in runs} == {"arm"}


def test_trials_of_a_pack_are_runs_of_their_own_at_steps_in_tokens(here: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    gpt_study(here / "small.yaml")
    hpo("launch", "--study", "small", "--pack", "2", "--track", "tensorboard", cwd=here, HPO_TRACK_WAIT="120")
    snapshot = snapshot_of(here, "small")
    marks = [round(rung * (snapshot.rung_tokens or 0)) for rung in range(1, snapshot.rungs + 1)]
    finals = set()
    for number in range(4):
        events = EventAccumulator(str(here / f"runs/small/tensorboard/{number:04}"))
        events.Reload()
        for name in ("val_loss", "train_loss", "tokens"):
            assert [event.step for event in events.Scalars(name)] == marks
        finals.add(events.Scalars("val_loss")[-1].value)
    assert len(finals) == 4


def test_worker_starts_a_tracker_of_its_own(here: Path) -> None:
    (here / "curves.py").write_text(MODULE)
    (here / "go").touch()
    (here / "scene.yaml").write_text(dump_yaml({**STUDY, "sampler": "random", "budget": {"trials": 1}}))
    hpo("launch", "--study", "scene", cwd=here, status=None)
    hpo("enqueue", "--set", "x=0.1", cwd=here)
    hpo("worker", "--track", "tensorboard", cwd=here, HPO_TRACK_WAIT="60")
    assert sorted(path.parent.name for path in here.glob("runs/scene/tensorboard/*/events*")) == ["0000", "0001"]


@pytest.fixture
def silent_server(here: Path) -> Iterator[str]:
    """A server that accepts connections and never answers. The first connection lets trial 1 continue."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as connections:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.enter_context(server.accept()[0])
                    (here / "go").touch()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_server_that_never_answers_costs_the_training_nothing(here: Path, silent_server: str, name: str) -> None:
    (here / "curves.py").write_text(MODULE)
    (here / "scene.yaml").write_text(dump_yaml(STUDY))
    servers = {"MLFLOW_TRACKING_URI": silent_server, "WANDB_BASE_URL": silent_server, "WANDB_API_KEY": "0" * 40}
    started_at = time.monotonic()
    done = hpo("launch", "--study", "scene", "--track", name, cwd=here, status=None, HPO_TRACK_WAIT="1", **servers)
    assert (
        f"note: {name} does not have all values of scene; `hpo track {name} --study scene` writes them" in done.stderr
    )
    assert len(snapshot_of(here, "scene").trials) == 5
    assert time.monotonic() - started_at < 120


def test_what_an_unreachable_server_has_missed_is_written_later(here: Path, tmp_path: Path) -> None:
    (here / "curves.py").write_text(MODULE)
    (here / "go").touch()
    (here / "scene.yaml").write_text(dump_yaml(STUDY))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    done = hpo(
        *("launch", "--study", "scene", "--track", "mlflow"), cwd=here, MLFLOW_TRACKING_URI=url, HPO_TRACK_WAIT="20"
    )
    assert "note: mlflow does not have all values of scene" in done.stderr
    failed = hpo("track", "mlflow", cwd=here, status=1, MLFLOW_TRACKING_URI=url)
    assert "could not be written to mlflow" in failed.stderr
    with mlflow_server(tmp_path, port):
        hpo("track", "mlflow", cwd=here, MLFLOW_TRACKING_URI=url)
        assert statuses_in_mlflow(url, "scene") == STATUSES

"""`hpo train --resume` and `hpo sample` with checkpoints that are damaged: one message, or an older checkpoint."""

from pathlib import Path

import pytest

from hpo.config.files import config_text
from hpo.config.yaml import dump_yaml
from hpo.runs.arithmetic import idle_device_note
from tests.support.command import hpo
from tests.support.tiny import tiny

# A training function that receives Ctrl-C in its first rung
STOPS = """
import os, signal
from pydantic import BaseModel


class Config(BaseModel):
    lr: float = 0.1


def train(config):
    os.kill(os.getpid(), signal.SIGINT)
    yield from ((rung, config.lr) for rung in (1, 2, 3))
"""


def interrupted(folder: Path, keep: str) -> list[Path]:
    """Train the tiny run, as if it had been stopped after its second rung; return its checkpoints in order."""
    config = tiny({"run.keep_checkpoints": keep})
    (folder / "run.yaml").write_text(config_text(config, {}))
    hpo("train", "run.yaml", "--out", "out", cwd=folder)
    return sorted((folder / "out" / "run").glob("**/state.safetensors"))


def damage(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def test_resume_goes_back_to_the_newest_checkpoint_that_is_whole(here: Path) -> None:
    files = interrupted(here, "all")
    assert len(files) == 3
    damage(files[2])
    done = hpo("train", "out/run/config.yaml", "--resume", cwd=here)
    assert "damaged: its content does not have the checksum in its header; the run resumes from" in done.stderr
    assert "rung 3" in done.stdout
    assert "rung 2" not in done.stdout


@pytest.mark.parametrize("command", [("train", "out/run/config.yaml", "--resume"), ("sample", "out/run")], ids=str)
def test_a_damaged_checkpoint_is_one_message(here: Path, command: tuple[str, ...]) -> None:
    (file,) = interrupted(here, "last")
    damage(file)
    done = hpo(*command, cwd=here, status=2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hpo: ")]
    assert f"{Path('out/run/checkpoint/state.safetensors')}: damaged: " in line
    assert ("without --resume, the run starts again in a new folder" in line) == (command[0] == "train")


def test_a_stopped_run_without_checkpoints_offers_no_resumption(here: Path) -> None:
    (here / "stops.py").write_text(STOPS)
    origin = {"train": "stops:train", "config": "stops:Config", "objective": "loss"}
    (here / "run.yaml").write_text(dump_yaml({"lr": 0.1, "provenance": origin}))
    done = hpo("train", "run.yaml", "--out", "out", cwd=here, status=130)
    assert "rung 1" in done.stdout
    assert "stopped; the run has no checkpoint" in done.stderr


def test_a_configuration_of_the_cpu_is_noted_where_a_faster_device_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.train.device.best_device", lambda: "cuda")
    assert "`--set run.device=cuda`" in idle_device_note(tiny())
    assert idle_device_note(tiny({"run.device": "auto"})) == ""
    monkeypatch.setattr("model.train.device.best_device", lambda: "cpu")
    assert idle_device_note(tiny()) == ""

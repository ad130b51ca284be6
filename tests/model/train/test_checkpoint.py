import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from model.nn.gpt import build_network
from model.section import updated
from model.train.checkpoint import FILE, CheckpointError, load, read
from model.train.trainer import Trainer
from tests.support.tiny import corpus, tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    trainer = Trainer([tiny(), tiny({"run.seed": 1})])
    for _ in trainer:
        trainer.save(1, folder)
        break
    return folder


def copy(saved, folder):
    (folder / FILE).write_bytes((saved / FILE).read_bytes())
    return folder / FILE


def test_a_checkpoint_holds_weights_and_optimizer_state_by_name(saved):
    tensors, state = read(saved)
    parameters = [name for name, _ in build_network(tiny().model, 257, 0).named_parameters()]
    assert sorted(tensors) == sorted(
        f"{kind}.{name}" for kind in ("weights", "exp_avg", "exp_avg_sq") for name in parameters
    )
    assert tensors["weights.wte.weight"].shape == (257, 16)
    assert state["config"] == tiny({"run.seed": 1}).model_dump(mode="json")
    assert state["progress"]["micro_step"] == 8


def test_a_checkpoint_is_safetensors_with_json_in_its_header(saved):
    with safe_open(saved / FILE, framework="np") as file:
        assert json.loads(file.metadata()["state"])["data_hash"]


def test_only_the_checkpoint_is_left_in_its_folder(saved):
    assert [path.name for path in saved.iterdir()] == [FILE]


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Trainer([tiny()]).resume(0, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_and_the_run_stays_as_it_was(saved, tmp_path, share):
    path = copy(saved, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: math.floor(share * len(content))])
    trainer = Trainer([tiny({"run.seed": 1})])
    before = trainer.pack.params.weights.clone()
    with pytest.raises(CheckpointError, match="not a checkpoint that can be read"):
        trainer.resume(0, tmp_path)
    assert torch.equal(trainer.pack.params.weights, before)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 1000])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read(tmp_path)


def test_a_checkpoint_of_another_config_is_refused(saved):
    trainer = Trainer([tiny({"run.seed": 1, "optimizer.lr": 0.5})])
    with pytest.raises(CheckpointError, match="another configuration"):
        trainer.resume(0, saved)


def test_a_checkpoint_on_other_data_is_refused(saved, tmp_path):
    config = tiny({"run.seed": 1})
    with pytest.raises(CheckpointError, match="other data"):
        load(saved, config, "0" * 64)
    # a real change: the file of the same name has another text
    path = tmp_path / "own.txt"
    path.write_text(Path(corpus()).read_text("utf-8"), "utf-8")
    config = updated(config, {"data.path": str(path)})
    first = Trainer([config])
    first.save(0, tmp_path)
    path.write_text(path.read_text("utf-8").replace("e", "a"), "utf-8")
    with pytest.raises(CheckpointError, match="other data"):
        Trainer([config]).resume(0, tmp_path)


def test_a_save_that_fails_leaves_the_last_checkpoint_whole(saved, tmp_path, monkeypatch):
    import model.train.checkpoint

    path = copy(saved, tmp_path)
    before = path.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(model.train.checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        Trainer([tiny()]).save(0, tmp_path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_checkpoint_of_a_pack_can_go_on_alone(saved):
    config = tiny({"run.seed": 1})
    trainer = Trainer([config])
    trainer.resume(0, saved)
    whole = [m[0].val_loss for _, m in Trainer([config])]
    assert [m[0].val_loss for _, m in trainer] == pytest.approx(whole[1:], abs=1e-5)

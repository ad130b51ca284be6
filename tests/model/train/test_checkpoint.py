import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model.nn.shapes import parameter_shapes
from model.section import updated
from model.train.checkpoint import FILE, CheckpointError, _checksum, load, read
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
    parameters = list(parameter_shapes(tiny().model, 257))
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


def rewritten(saved, folder, change, checksum=True):
    """Write the checkpoint again with other tensors or another state; without a checksum as version 0.1 wrote it."""
    tensors, state = read(saved)
    tensors, state = change(dict(tensors), dict(state))
    if not checksum:
        state.pop("format", None)
    text = json.dumps(state)
    save_file(tensors, folder / FILE, {"state": text} | ({"sha256": _checksum(text, tensors)} if checksum else {}))
    return folder


def refused(folder, message):
    """Check that a checkpoint is refused with a message, and that the run stays as it was."""
    trainer = Trainer([tiny({"run.seed": 1})])
    before = {name: tensor.clone() for name, tensor in trainer.pack.params.tensors(0).items()}
    with pytest.raises(CheckpointError, match=message):
        trainer.resume(0, folder)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.pack.params.tensors(0).items())
    assert (trainer.runs[0].micro_step, trainer.runs[0].rung) == (0, 0)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_one_flipped_bit_anywhere_in_the_file_is_noticed(saved, tmp_path, share):
    path = copy(saved, tmp_path)
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)
    refused(tmp_path, "damaged: its content does not have the checksum|not a checkpoint that can be read")


def test_a_file_whose_second_half_was_never_written_is_noticed(saved, tmp_path):
    path = copy(saved, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    refused(tmp_path, "damaged: its content does not have the checksum")


def without(name):
    return lambda tensors, state: ({key: tensor for key, tensor in tensors.items() if key != name}, state)


def with_tensor(name, change):
    return lambda tensors, state: (tensors | {name: change(tensors.get(name, torch.zeros(2)))}, state)


def with_state(**fields):
    return lambda tensors, state: (tensors, {k: v for k, v in (state | fields).items() if v is not None})


def with_progress(**fields):
    def change(tensors, state):
        progress = {k: v for k, v in (state["progress"] | fields).items() if v is not None}
        return tensors, state | {"progress": progress}

    return change


WTE = "weights.wte.weight"
FOREIGN = [
    (without(WTE), f"lacks the tensor {WTE}"),
    (without("exp_avg_sq.wte.weight"), "lacks the tensor exp_avg_sq.wte.weight"),
    (with_tensor("weights.other", torch.ones_like), "holds weights.other, which the run does not have"),
    (with_tensor(WTE, lambda t: t[:-1].contiguous()), rf"{WTE} must be \[257, 16\] torch.float32, got \[256, 16\]"),
    (with_tensor(WTE, lambda t: t.double()), "got .* torch.float64"),
    (with_tensor(WTE, lambda t: t * math.nan), f"damaged: {WTE} is not finite"),
    (lambda tensors, state: (tensors, {}), "it has no 'config'"),
    (with_state(progress=None), "it has no 'progress'"),
    (with_state(data_hash=None), "it has no 'data_hash'"),
    (with_state(config={}), "another configuration"),
    (with_state(config={"run": {"seed": "x"}}), r"not valid in this version \(run.seed"),
    (with_state(progress=[1]), "its progress has the wrong type"),
    (with_progress(micro_step=None), "its progress has no 'micro_step'"),
    (with_progress(micro_step=5), "not that of a run at a rung"),
    (with_progress(micro_step=-8), "not that of a run at a rung"),
    (with_progress(health=None), "its progress has no 'health'"),
    (with_progress(health={"failures": "x"}), "damaged: "),
    (with_progress(scale="x"), "damaged: "),
]


@pytest.mark.parametrize(("change", "message"), FOREIGN, ids=[message for _, message in FOREIGN])
@pytest.mark.parametrize("checksum", [True, False], ids=["with checksum", "of version 0.1"])
def test_a_checkpoint_with_other_names_shapes_types_or_progress_is_refused(saved, tmp_path, change, message, checksum):
    refused(rewritten(saved, tmp_path, change, checksum), message)


def test_a_checkpoint_of_an_earlier_version_loads_with_a_note_that_it_is_not_verified(saved, tmp_path, caplog):
    rewritten(saved, tmp_path, lambda *both: both, checksum=False)
    assert Trainer([tiny({"run.seed": 1})]).resume(0, tmp_path) == 1
    assert "written by an earlier version without a checksum, so its content is not verified" in caplog.text


def test_a_checksum_that_was_removed_is_noticed(saved, tmp_path):
    tensors, state = read(saved)
    save_file(tensors, tmp_path / FILE, {"state": json.dumps(state)})
    refused(tmp_path, "does not have the checksum")


def test_a_field_added_later_does_not_refuse_the_checkpoints_of_before(saved, tmp_path):
    def as_before(tensors, state):
        config = {**state["config"], "run": {k: v for k, v in state["config"]["run"].items() if k != "attention"}}
        return tensors, {**state, "config": config}

    assert Trainer([tiny({"run.seed": 1})]).resume(0, rewritten(saved, tmp_path, as_before)) == 1


def test_a_checkpoint_resumes_after_its_text_has_moved(saved, tmp_path):
    moved = tmp_path / "elsewhere.txt"
    moved.write_text(Path(corpus()).read_text("utf-8"), "utf-8")
    assert Trainer([tiny({"run.seed": 1, "data.path": str(moved)})]).resume(0, saved) == 1


def test_a_folder_in_the_place_of_a_checkpoint_is_refused(tmp_path):
    (tmp_path / FILE).mkdir()
    refused(tmp_path, "not a checkpoint that can be read")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power failure after the rename leaves the complete file: file, rename, folder, in this order."""
    done = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda n: (done.append(Path(os.readlink(f"/proc/self/fd/{n}"))), sync(n))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("renamed"), replace(self, to))[1])
    Trainer([tiny()]).save(0, tmp_path)
    assert [path if isinstance(path, str) else path.parent == tmp_path for path in done] == [True, "renamed", False]
    assert done[-1] == tmp_path


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

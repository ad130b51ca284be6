"""A resumed run equals an uninterrupted run bit for bit, for every component that has state."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model.optim.clipping import Clip
from model.optim.optimizers import Optimizer
from model.optim.schedule import Schedule
from model.train.checkpoint import FILE
from model.train.trainer import Trainer
from tests.support.cases import covering
from tests.support.tiny import timeless, tiny


def names(union: Any) -> list[str]:
    """Return the names of a registry's components."""
    return [kind.model_fields["name"].default for kind in get_args(get_args(union)[0])]


OPTIMIZERS, CLIPS, SCHEDULES = names(Optimizer), names(Clip), names(Schedule)
# Components with state: averages, streams of random numbers, a position in the data, the last good step.
STATEFUL: list[dict[str, Any]] = [
    {"regularization.ema": 0.9},
    {"regularization.dropout": 0.2},
    {"regularization.mask_tokens": 0.1},
    {"regularization.embedding_noise": 0.1},
    {"recovery.name": "skip", "recovery.spike": 3.0},
    {"recovery.name": "rollback", "recovery.spike": 3.0},
    {"run.grad_accum": 2},
    {"model.name": "moe"},
    {"data.layout": "documents"},
]


def weights(trainer: Trainer, lane: int) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.pack.params.tensors(lane).items()}


def rename_to_version_0_1(folder: Path) -> None:
    """Give the state tensors of a checkpoint the names that version 0.1 used."""
    old_names = {"exp_avg": "m", "momentum_buffer": "m", "exp_avg_sq": "v", "square_avg": "v"}
    tensors = {}
    with safe_open(folder / FILE, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        for name in file.keys():  # noqa: SIM118
            kind, _, parameter = name.partition(".")
            tensors[f"{old_names.get(kind, kind)}.{parameter}"] = file.get_tensor(name)
    assert any(name.startswith("m.") for name in tensors)
    del state["format"]  # version 0.1 wrote neither a format nor a checksum
    save_file(tensors, folder / FILE, metadata={"state": json.dumps(state)})


def differences(values: dict[str, Any], folder: Path, packed: bool, old_names: bool = False) -> list[str]:
    """Resume a run from its first rung in another trainer; return what differs from the uninterrupted run."""
    config = tiny({"optimizer.lr": 3e-3} | values)
    neighbour = tiny({"optimizer.lr": 1e-3, "run.seed": 5} | values)
    uninterrupted = Trainer([config, neighbour] if packed else [config])
    expected, ends = [], {}
    for _, metrics in uninterrupted:
        expected.append(timeless(metrics[0]))
        ends = weights(uninterrupted, 0)
    assert len(expected) == 3

    first = Trainer([config, neighbour] if packed else [config])
    next(iter(first))
    first.save(0, folder)
    if old_names:
        rename_to_version_0_1(folder)
    del first
    # In a pack: another position, beside a run that is at its start.
    lane = 1 if packed else 0
    later = Trainer([neighbour, config] if packed else [config])
    assert later.resume(lane, folder) == 1
    found, last = [], {}
    for _, metrics in later:
        if lane in metrics:
            found.append(timeless(metrics[lane]))
            last = weights(later, lane)
    assert len(found) == 2
    rungs = [f"rung {m.rung}" for m, n in zip(expected[1:], found, strict=True) if m != n]
    return rungs + [name for name in ends.keys() | last.keys() if not torch.equal(ends[name], last[name])]


@pytest.mark.parametrize(("optimizer", "clip", "packed"), covering(OPTIMIZERS, CLIPS, [False, True]))
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    optimizer: str, clip: str, packed: bool, tmp_path: Path
) -> None:
    assert differences({"optimizer.name": optimizer, "clip.name": clip}, tmp_path, packed) == []


@pytest.mark.parametrize(("values", "packed"), covering(STATEFUL, [False, True]))
def test_resumed_run_keeps_every_other_state(values: dict[str, Any], packed: bool, tmp_path: Path) -> None:
    assert differences(values, tmp_path, packed) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resumed_run_continues_in_its_schedule(schedule: str, tmp_path: Path) -> None:
    assert differences({"schedule.name": schedule}, tmp_path, packed=False) == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_of_version_0_1_resumes_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    assert differences({"optimizer.name": optimizer}, tmp_path, packed=True, old_names=True) == []

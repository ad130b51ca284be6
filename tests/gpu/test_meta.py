"""A step on a device that is not the CPU, on any machine: torch's meta device has shapes and no values.

A meta tensor has no value that could be read, so a step that reads one fails. A step must not use tensors of the CPU
either: on a GPU, each would be a copy that waits for the GPU.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.optim.clipping import Clip
from model.optim.optimizers import Optimizer
from model.train.pack import Pack
from model.train.step import PackOptimizer
from model.train.tables import build_batches
from model.train.trainer import Trainer
from tests.support.cases import exhaustive
from tests.support.tiny import UPDATE, tiny

META = torch.device("meta")


def names(union) -> list[str]:
    """Return the names of the components of a union."""
    return [kind.model_fields["name"].default for kind in union.__args__[0].__args__]


RULES = [
    *({"optimizer.name": name} for name in names(Optimizer)),
    *({"clip.name": name} for name in names(Clip)),
    {"regularization.dropout": 0.1, "regularization.ema": 0.9, "model.position": "rope", "model.norm": "rmsnorm"},
    {"regularization.mask_tokens": 0.1, "regularization.embedding_noise": 0.1, "model.document_mask": True},
    {"run.precision": "fp16"},
    {"recovery.name": "skip"},
    {"recovery.name": "rollback", "recovery.spike": 3.0, "run.precision": "fp16", "schedule.name": "onecycle"},
]


class OneDevice(TorchDispatchMode):
    """Fail at an operation on a tensor of the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, torch.Tensor) or tensor.device == META, f"{func} uses a tensor of the CPU"
        return result


def on_meta(trainer: Trainer) -> Trainer:
    """Move a trainer to the meta device."""
    trainer.device, trainer.reads_divergence = META, False
    trainer.pack = Pack(trainer.shared, trainer.prepared.vocab_size, len(trainer.runs), META)
    trainer.pack.passes.autocast = nullcontext  # which does not exist for this device
    trainer.sums = torch.zeros(len(trainer.runs), dtype=torch.float64, device=META)
    trainer.optimizer = PackOptimizer(trainer.pack)
    for lane, run in trainer.runs.items():
        trainer.pack.initialize(lane, run.config)
        trainer._begin_rung(lane)
    return trainer


@pytest.mark.parametrize(
    ("rule", "size"),
    [({}, 1), *((rule, 3) if i % 3 == 0 else exhaustive(rule, 3) for i, rule in enumerate(RULES))],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_step_uses_no_tensor_of_the_cpu(rule, size):
    common = rule | {"run.align": 2 * UPDATE}
    runs = [tiny(common | {"run.grad_accum": 1 + lane % 2, "run.seed": lane}) for lane in range(size)]
    trainer = on_meta(Trainer(runs))
    trainer.optimizer.load(trainer.runs)
    table = build_batches(trainer.runs, (size, 4, 16), 8, META)
    trainer.optimizer.prepare(trainer.runs, 8)
    with OneDevice():
        live = trainer._train_on(table, list(range(size)))
    assert live == list(range(size))
    assert {run.micro_step for run in trainer.runs.values()} == {8}


@pytest.mark.parametrize(
    "wrong", [lambda x: x + torch.tensor(1.0), lambda x: torch.tensor([1.0]).to(META), lambda x: x.item()]
)
def test_the_guard_sees_tensors_of_the_cpu_and_reads(wrong):
    with OneDevice(), pytest.raises((AssertionError, RuntimeError)):
        wrong(torch.ones((), device=META))

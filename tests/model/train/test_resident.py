"""Batches that are gathered on the device are those that the CPU gathers."""

import pytest
import torch

from model.data.prepare import prepare
from model.train.resident import ResidentSplit, fits, resident_split
from model.train.run_state import RunState
from model.train.tables import build_batches
from model.train.trainer import Trainer
from tests.support.tiny import curves, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "values", [{}, {"data.name": "lines", "data.layout": "documents"}], ids=["stream", "documents"]
)
def test_windows_gathered_on_the_device_are_those_of_the_cpu_in_every_epoch(values):
    configs = [tiny(values | {"run.seed": seed}) for seed in range(2)]
    split = prepare(configs[0].data, configs[0].tokenizer).splits["train"]
    resident = ResidentSplit(split, CPU)
    runs = {lane: RunState(config, split) for lane, config in enumerate(configs, 1)}  # lane 0 is empty
    rows = runs[1].batches.n_rows(0)
    for start in (0, rows // 4 - 5):  # the second table holds the end of the first epoch
        for run in runs.values():
            run.micro_step = start
        tables = [build_batches(runs, (3, 4, 16), 12, CPU, source) for source in (resident, None)]
        for found, wanted in zip(*tables, strict=True):
            assert torch.equal(found, wanted)
            assert found.is_contiguous()


@pytest.mark.parametrize("values", [{}, {"data.shuffle_documents": True}, {"data.drop_documents": 0.2}], ids=str)
def test_a_run_on_resident_text_has_the_same_curve(values):
    # With documents in a new order, the batches are gathered by the CPU.
    config = tiny(values | {"data.name": "lines", "run.rungs": 2})
    wanted = curves(Trainer([config]))
    trainer = Trainer([config])
    assert trainer.resident is None
    trainer.resident = ResidentSplit(trainer.prepared.splits["train"], CPU)
    trainer.validation.resident = ResidentSplit(trainer.prepared.splits["val"], CPU)
    assert curves(trainer) == wanted


def test_text_is_copied_where_it_takes_at_most_a_sixteenth_of_the_memory():
    config = tiny()
    split = prepare(config.data, config.tokenizer).splits["train"]
    size = 4 * len(split.tokens)
    assert fits(split, 16 * size)
    assert not fits(split, 16 * size - 1)
    assert resident_split(split, CPU) is None

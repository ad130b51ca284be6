"""A Hugging Face Trainer as the command of a study."""

import os
import sys
from pathlib import Path

import pytest

from hpo.config.yaml import dump_yaml
from hpo.runs.metrics import read_metrics
from tests.support.command import hpo

pytestmark = pytest.mark.integrations

SCRIPT = """
import argparse, os

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hpo.integrations.transformers import HpoCallback

parser = argparse.ArgumentParser()
parser.add_argument("--learning_rate", type=float)
parser.add_argument("--output_dir")
given = parser.parse_args()


class Counting(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        tokens = (torch.arange(16) + i) % 32
        return {"input_ids": tokens, "labels": tokens}


os.makedirs(given.output_dir, exist_ok=True)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2))
arguments = TrainingArguments(
    given.output_dir, learning_rate=given.learning_rate, max_steps=40, eval_strategy="steps", eval_steps=10,
    save_steps=10, per_device_train_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=Counting(), eval_dataset=Counting(), callbacks=[HpoCallback()])
trainer.train(resume_from_checkpoint=get_last_checkpoint(given.output_dir))
print("ended at step", trainer.state.global_step)
"""


def test_trainer_reports_its_evaluations_and_stops_when_it_is_pruned(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    study = {
        "command": [sys.executable, "run.py", "--learning_rate={lr}", "--output_dir={dir}/checkpoint"],
        "objective": "eval_loss",
        "steps": {"rungs": 4, "last": 40},
        "space": {"lr": {"choices": [3e-2, 3e-3, 1e-6]}},
        "sampler": "grid",
        "pruner": {"name": "threshold", "upper": 2.5, "warmup_rungs": 1},
        "budget": {"trials": 3},
    }
    (tmp_path / "trainer.yaml").write_text(dump_yaml(study))
    hpo("launch", "--study", "trainer", "--quiet", cwd=tmp_path, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    curves = [
        [
            (row["step"], row["eval_loss"])
            for row in read_metrics(tmp_path / f"runs/trainer/trials/{n:04}/metrics.jsonl")
        ]
        for n in range(3)
    ]
    assert [step for step, _ in curves[0]] == [10, 20, 30, 40]
    assert curves[0][-1][1] < 1.0 < curves[2][-1][1]
    assert "ended at step 40" in (tmp_path / "runs/trainer/trials/0000/output.log").read_text()
    assert len(curves[2]) < 4
    assert "ended at step" in (tmp_path / "runs/trainer/trials/0002/output.log").read_text()


def test_callback_without_a_search_changes_nothing() -> None:
    import transformers

    from hpo.integrations.transformers import HpoCallback

    control, state = transformers.TrainerControl(), transformers.TrainerState()
    HpoCallback().on_evaluate(None, state, control, {"eval_loss": 1.0})
    assert not control.should_training_stop

"""Names of nanoGPT, transformers, W&B and Optuna: every message about one names its counterpart."""

from pathlib import Path
from typing import Any

import pytest

from hpo.config.foreign_names import COMPONENTS, FIELDS, NESTED_KEYS
from hpo.config.validation import field_paths, nearest_path, union_members
from hpo.config.yaml import dump_yaml
from hpo.study.spec import StudyFile
from model.config import TrainConfig
from tests.support.command import hpo

NANOGPT = {  # name in nanoGPT's train.py -> the field here, "" if there is none
    "learning_rate": "optimizer.lr",
    "max_iters": "run.tokens",
    "weight_decay": "optimizer.weight_decay",
    "beta1": "optimizer.beta1",
    "beta2": "optimizer.beta2",
    "grad_clip": "clip.max_norm",
    "warmup_iters": "schedule.warmup",
    "lr_decay_iters": "schedule.decay",
    "min_lr": "schedule.floor",
    "decay_lr": "schedule.name",
    "block_size": "model.context",
    "n_layer": "model.n_layer",
    "n_head": "model.n_head",
    "n_embd": "model.n_embd",
    "dropout": "regularization.dropout",
    "bias": "model.bias",
    "batch_size": "run.batch_size",
    "gradient_accumulation_steps": "run.grad_accum",
    "eval_interval": "run.rungs",
    "compile": "run.compile",
    "dtype": "run.precision",
    "device": "run.device",
    "seed": "run.seed",
    "dataset": "data.path",
    "eval_iters": "",
    "log_interval": "",
    "out_dir": "",
    "wandb_log": "",
    "init_from": "",
}


def test_every_counterpart_exists() -> None:
    known = field_paths(TrainConfig)
    assert {field for field, _ in FIELDS.values()} - {""} <= set(known)
    keys = set(field_paths(StudyFile))
    assert {f"{path.partition('.')[0]}.{name}" for path, name in NESTED_KEYS.items()} <= keys
    sections = [kind for key in ("sampler", "pruner") for kind in union_members(StudyFile.model_fields[key].annotation)]
    assert set(COMPONENTS.values()) <= {kind.model_fields["name"].default for kind in sections}


@pytest.mark.parametrize("name", NANOGPT)
def test_a_name_of_nanogpt_is_refused_with_its_counterpart_in_spaces_bases_and_set(tmp_path: Path, name: str) -> None:
    said = nearest_path(name, field_paths(TrainConfig))
    assert NANOGPT[name] in said if NANOGPT[name] else said.startswith("; omit it")
    tree = {"base": {name: 1}, "space": {name: {"low": 1, "high": 2}}}
    if name not in ("learning_rate", "max_iters", "eval_iters"):  # the commands themselves are tried with these
        return
    (tmp_path / "s.yaml").write_text(dump_yaml(tree))
    assert f"s.yaml: base.{name}: no such field{said}" in hpo("check", "s.yaml", cwd=tmp_path, status=2).stderr
    (tmp_path / "s.yaml").write_text(dump_yaml({"space": tree["space"]}))
    assert f"s.yaml: space.{name}: no such field{said}" in hpo("check", "s.yaml", cwd=tmp_path, status=2).stderr
    (tmp_path / "s.yaml").write_text(dump_yaml({"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}))
    refused = hpo("check", "s.yaml", "--set", f"{name}=1", cwd=tmp_path, status=2).stderr
    assert f"--set {name}: no such field{said}" in refused


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("train.learningRate", "; use optimizer.lr"),
        ("run.per_device_train_batch_size", "; use run.batch_size"),
        ("optimizer.learning-rate", "; use optimizer.lr"),
        ("optimizer.lrr", "; did you mean optimizer.lr?"),
        ("zzz", ""),
    ],
)
def test_a_name_is_known_in_every_section_and_spelling(path: str, said: str) -> None:
    assert nearest_path(path, field_paths(TrainConfig)) == said


def test_a_class_of_the_user_is_only_answered_with_its_own_fields() -> None:
    assert nearest_path("learning_rate", ["lr", "width"]) == "; use lr"
    assert nearest_path("learning_rate", ["rate", "width"]) == ""
    assert nearest_path("eval_iters", ["width"]) == ""


def test_a_sweep_file_is_refused_with_the_key_to_use_for_each_of_its_keys(tmp_path: Path) -> None:
    sweep: dict[str, Any] = {
        "name": "sweep",
        "project": "gpt",
        "program": "train.py",
        "method": "bayes",
        "metric": {"name": "val_acc", "goal": "maximize"},
        "parameters": {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1}},
        "early_terminate": {"type": "hyperband", "min_iter": 3},
        "run_cap": 30,
        "n_trials": 3,
        "learning_rate": 0.1,
    }
    (tmp_path / "sweep.yaml").write_text(dump_yaml(sweep))
    said = hpo("launch", "--study", "sweep.yaml", cwd=tmp_path, status=2).stderr
    remedies = {
        "name": "; use the name of the file",
        "project": "; omit it",
        "program": "; use command: [python, PROGRAM, {flags}]",
        "method": "; use sampler: {name: tpe}",
        "metric.name": "; use objective: val_acc",
        "metric.goal": "; use direction: maximize",
        "parameters": "; use space: ",
        "early_terminate": "; use pruner: ",
        "run_cap": "; use budget: {trials: N}",
        "n_trials": "; use budget: {trials: N}",
        "learning_rate": "; use optimizer.lr in base or in space",
    }
    assert {key.partition(".")[0] for key in remedies} == set(sweep)
    for key, remedy in remedies.items():
        assert f"sweep.yaml: {key}: no such field{remedy}" in said


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sampler": {"name": "TPESampler"}}, "got 'TPESampler'; use tpe"),
        ({"sampler": {"name": "optuna.samplers.TPESampler"}}, "; use tpe"),
        ({"sampler": "GPSampler"}, "sampler: must be one of"),
        ({"sampler": "GPSampler"}, "got 'GPSampler'; use gp"),
        ({"sampler": {"name": "bayes"}}, "got 'bayes'; use tpe"),
        ({"pruner": {"name": "SuccessiveHalvingPruner"}}, "got 'SuccessiveHalvingPruner'; use halving"),
        ({"pruner": {"name": "NopPruner"}}, "got 'NopPruner'; use none"),
        ({"sampler": 3}, "sampler: must be a mapping, got 3"),
        ({"sampler": {"name": "tpe", "n_startup_trials": 3}}, "no such field; use sampler.startup_trials"),
        ({"budget": {"n_trials": 3}}, "no such field; use budget.trials"),
    ],
)
def test_words_of_optuna_are_refused_with_ours(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    (tmp_path / "s.yaml").write_text(dump_yaml({"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}} | keys))
    assert said in hpo("check", "s.yaml", cwd=tmp_path, status=2).stderr

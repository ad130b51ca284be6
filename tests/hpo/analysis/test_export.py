"""What a search found is exported, trained again to the last bit, trained longer, interrupted, sampled."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo.commands.sample import sample_text
from hpo.commands.train import train_config
from hpo.config.yaml import parse_yaml
from hpo.errors import Problem
from hpo.runs.resources import thread_environment
from model.config import TrainConfig
from model.section import flat
from tests.support.command import environment, hpo, run_in_process
from tests.support.tiny import corpus

STUDY = """# Which lr, on next to nothing?
base:
  data: {{name: text, path: {path}}}
  tokenizer: {{name: bytes}}
  model: {{n_layer: 1, n_head: 2, n_embd: 32, context: 32}}
  run: {{tokens: 4608, rungs: 3, batch_size: 4, device: cpu, keep_checkpoints: none}}
space:
  optimizer.lr: {{low: 1e-3, high: 1e-2, log: true}}
  regularization.dropout: {{low: 0.0, high: 0.3}}
  optimizer.beta2_half_life: {{low: 256, high: 8192, log: true}}
  optimizer.decay_horizon: {{low: 1e+3, high: 1e+5, log: true}}
baseline: [{{}}, {{optimizer.lr: 0.05, model.mlp: relu}}]
pruner: {{name: none}}
budget: {{trials: 4}}
"""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute here as the processes do, with one thread: the last bits depend on it."""
    for name, value in thread_environment(1).items():
        monkeypatch.setenv(name, value)  # what `train` sets where nothing is set would stay
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def launched(folder: Path, *more: str) -> Path:
    (folder / "small.yaml").write_text(STUDY.format(path=corpus()))
    hpo("launch", "--study", "small.yaml", *more, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study whose trials trained one by one."""
    return launched(tmp_path_factory.mktemp("alone"), "--workers", "2")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study whose trials trained three side by side."""
    return launched(tmp_path_factory.mktemp("packed"), "--workers", "1", "--pack", "3")


@pytest.fixture(scope="module")
def best(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported best configuration of the first study."""
    path = tmp_path_factory.mktemp("export") / "deep" / "er" / "best.yaml"
    hpo("export", "-o", str(path), cwd=alone)
    return path


def curve(path: Path) -> list[dict[str, Any]]:
    """Return a metrics file without what the clock says."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in clock and v is not None} for row in rows]


def test_exported_file_is_complete_and_says_where_it_comes_from(alone: Path, best: Path) -> None:
    tree = parse_yaml(best.read_text())
    provenance = tree.pop("provenance")
    config = TrainConfig.model_validate(tree)
    assert set(flat(config)) == {f"{section}.{key}" for section, fields in tree.items() for key in fields}
    status = json.loads(run_in_process("status", "--format", "json", cwd=alone))
    assert provenance["study"] == "small"
    assert provenance["trial"] == status["best"]["number"]
    assert provenance["value"] == status["best"]["value"]
    assert provenance["sampler_seed"] == 0
    assert flat(config)["run.seed"] == 0
    assert len(provenance["data_hash"]) == 64
    assert set(provenance["versions"]) == {"python", "hpo", "torch", "optuna", "numpy", "tokenizers"}
    assert provenance["threads"] == max(1, (os.cpu_count() or 1) // 2)
    assert "git_commit" in provenance
    assert {"unigram", "bigram", "trigram"} <= set(provenance["anchors"])
    assert {"train", "config", "objective"} <= set(provenance)


def test_export_prints_to_standard_output_what_it_writes_to_a_file(alone: Path, best: Path) -> None:
    assert run_in_process("export", cwd=alone) == best.read_text()
    assert (alone / "runs/small/best.yaml").read_text() == best.read_text()


def test_exported_configuration_gives_the_curve_of_the_trial_to_the_last_bit(
    alone: Path, best: Path, tmp_path: Path
) -> None:
    provenance = parse_yaml(best.read_text())["provenance"]
    hpo("train", str(best), cwd=tmp_path, **thread_environment(provenance["threads"]))
    found = curve(tmp_path / "runs/train/best/metrics.jsonl")
    assert found == curve(alone / f"runs/small/trials/{provenance['trial']:04d}/metrics.jsonl")
    assert found[-1]["val_loss"] == provenance["value"]


def test_exported_configuration_gives_the_curve_of_a_packed_trial(packed: Path, tmp_path: Path) -> None:
    # a trial inside the space: the second baseline's lr is so large that rounding grows to 5e-5 in 36 updates
    run_in_process("export", "--trial", "2", "-o", "it.yaml", cwd=packed)
    expected = curve(packed / "runs/small/trials/0002/metrics.jsonl")
    assert train_config(packed / "it.yaml", [], tmp_path, resume=False) == 0
    found = curve(tmp_path / "it/metrics.jsonl")
    assert len(found) == len(expected) == 3
    for row, other in zip(found, expected, strict=True):
        for key in ("grad_norms", "update_ratios"):
            assert row.pop(key) == pytest.approx(other.pop(key), rel=1e-3)
        assert row == pytest.approx(other, rel=1e-5, abs=1e-5)


def test_baseline_with_values_outside_the_space_is_exported_as_it_ran(alone: Path) -> None:
    configs = [parse_yaml(run_in_process("export", "--trial", str(number), cwd=alone)) for number in range(4)]
    assert [config["provenance"]["trial"] for config in configs] == [0, 1, 2, 3]
    # Two workers take the baselines at one moment; which numbers they get is chance.
    found = {(config["optimizer"]["lr"], config["model"]["mlp"]) for config in configs}
    assert {(0.001, "gelu"), (0.05, "relu")} < found


def test_searched_half_lives_are_exported_and_derived_values_stand_beside_them(packed: Path, tmp_path: Path) -> None:
    text = run_in_process("export", "--trial", "2", cwd=packed)
    tree = parse_yaml(text)
    optimizer, update = tree["optimizer"], 4 * 32
    beta2 = 0.5 ** (update / optimizer["beta2_half_life"])
    decay = update / (optimizer["lr"] * optimizer["decay_horizon"])
    assert (optimizer["beta2"], optimizer["weight_decay"]) == (None, None)
    assert tree["provenance"]["derived"] == {"optimizer.beta2": beta2, "optimizer.weight_decay": decay}
    assert (
        f"  beta2_half_life: {optimizer['beta2_half_life']!r}  # beta2 is {beta2!r} with 128 tokens per update" in text
    )
    assert f"  # weight_decay is {decay!r} with 128 tokens per update\n" in text
    (tmp_path / "it.yaml").write_text(text)
    assert train_config(tmp_path / "it.yaml", ["run.batch_size=2"], tmp_path, resume=False) == 0
    trained = (tmp_path / "it/config.yaml").read_text()
    assert parse_yaml(trained)["provenance"]["derived"]["optimizer.beta2"] == 0.5 ** (64 / optimizer["beta2_half_life"])


def test_longer_training_has_the_same_rungs_and_the_schedule_stretched_over_it(best: Path, tmp_path: Path) -> None:
    assert train_config(best, [], tmp_path / "short", resume=False) == 0
    assert train_config(best, ["run.tokens=9216"], tmp_path / "long", resume=False) == 0
    short, long = (curve(tmp_path / name / "best/metrics.jsonl") for name in ("short", "long"))
    assert [row["rung"] for row in long] == [row["rung"] for row in short] == [1, 2, 3]
    assert [row["tokens"] for row in long] == [2 * row["tokens"] for row in short]
    for row, other in zip(long[:-1], short[:-1], strict=True):
        assert row["lr"] == pytest.approx(other["lr"], rel=0.1)
    written = parse_yaml((tmp_path / "long/best/config.yaml").read_text())
    assert written["run"]["tokens"] == 9216


def interrupted(config: Path, folder: Path, *more: str) -> str:
    """Train, press Ctrl-C at the first rung; return what was said."""
    command = [sys.executable, "-m", "hpo", "train", str(config), *more]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("rung 1")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    return said


def test_interrupted_run_continues_to_the_same_curve(best: Path, tmp_path: Path) -> None:
    # long enough that Ctrl-C arrives before the end
    more = ["run.tokens=30_000", "run.rungs=4", "run.keep_checkpoints=none"]
    said = interrupted(best, tmp_path, *(part for key in more for part in ("--set", key)))
    config = tmp_path / "runs/train/best/config.yaml"
    assert f"`hpo train {config.relative_to(tmp_path)} --resume` resumes the run" in said
    first = curve(config.parent / "metrics.jsonl")
    assert len(first) < 4
    assert train_config(config, [], tmp_path / "elsewhere", resume=True) == 0
    found = curve(config.parent / "metrics.jsonl")
    assert found[: len(first)] == first
    assert train_config(best, more, tmp_path / "whole", resume=False) == 0
    assert found == curve(tmp_path / "whole/best/metrics.jsonl")
    assert kept(config.parent) == set()


def kept(run: Path) -> set[str]:
    return {str(path.parent.relative_to(run)) for path in run.glob("**/state.safetensors")}


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ("none", set()),
        ("last", {"checkpoint"}),
        ("best", {"checkpoint"}),
        ("all", {"checkpoint/rung-001", "checkpoint/rung-002", "checkpoint/rung-003"}),
    ],
)
def test_run_leaves_the_checkpoints_that_were_asked_for(best: Path, tmp_path: Path, keep: str, left: set[str]) -> None:
    assert train_config(best, [f"run.keep_checkpoints={keep}"], tmp_path, resume=False) == 0
    assert kept(tmp_path / "best") == left
    if keep == "none":
        with pytest.raises(Problem, match="there is no checkpoint in"):
            train_config(best, ["run.keep_checkpoints=none"], tmp_path, resume=True)
    else:
        before = curve(tmp_path / "best/metrics.jsonl")
        assert train_config(best, [f"run.keep_checkpoints={keep}"], tmp_path, resume=True) == 0
        assert curve(tmp_path / "best/metrics.jsonl") == before


def test_run_killed_after_its_newest_checkpoint_continues_to_the_same_curve(best: Path, tmp_path: Path) -> None:
    assert train_config(best, ["run.keep_checkpoints=all"], tmp_path, resume=False) == 0
    before = curve(tmp_path / "best/metrics.jsonl")
    for rung in (2, 3):  # as if these had not been written in time, though the log was
        shutil.rmtree(tmp_path / f"best/checkpoint/rung-{rung:03d}")
    assert train_config(tmp_path / "best/config.yaml", [], tmp_path / "elsewhere", resume=True) == 0
    assert curve(tmp_path / "best/metrics.jsonl") == before


def test_resuming_what_never_ran_is_refused(best: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"--resume: needs an earlier run; there is no run of .*best.yaml in"):
        train_config(best, [], tmp_path, resume=True)


def test_run_with_its_checkpoint_is_sampled(best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_process("train", str(best), "--set", "run.keep_checkpoints=last", cwd=tmp_path)
    assert "hpo sample runs/train/best --prompt 'The '" in capsys.readouterr().err
    printed = hpo("sample", "runs/train/best", "--prompt", "The ", "--tokens", "20", cwd=tmp_path).stdout
    drawn = sample_text(tmp_path / "runs/train/best", "The ", 20, 0.8, None, 0)
    assert printed == f"{drawn}\n"
    assert len(drawn) > 5
    with pytest.raises(Problem, match="no checkpoint"):
        sample_text(tmp_path / "nothing", "The ", 20, 0.8, None, 0)


def test_diverging_configuration_ends_with_one_line(best: Path, tmp_path: Path) -> None:
    more = ("--set", "optimizer.lr=1e30", "--set", "clip.name=none")
    done = hpo("train", str(best), *more, cwd=tmp_path, status=1)
    counts, error = done.stderr.splitlines()
    assert counts.startswith("data: ")
    assert error == "hpo: the run diverged: val_loss is not finite; try a lower optimizer.lr first"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1", "c.yaml: must be a configuration, as `hpo export` writes it"),
        ("a: [", "c.yaml: line 1, column 5: expected the node content, but found '<stream end>'"),
        ("optimizer: {lrr: 1}", "c.yaml: optimizer.lrr: no such field; did you mean optimizer.lr?"),
        ("provenance: 3", "c.yaml: must be a configuration, as `hpo export` writes it"),
        (
            "provenance: {config: nowhere:C}",
            "provenance.config: no module 'nowhere' in the current folder or installed, got 'nowhere:C'",
        ),
        (
            "provenance: {train: nowhere:f}",
            "train: no module 'nowhere' in the current folder or installed, got 'nowhere:f'",
        ),
    ],
)
def test_file_that_cannot_be_trained_is_named_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    overrides = ["data.name=text", f"data.path={corpus()}"] if "train" in text else []
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem) as caught:
        train_config(Path("c.yaml"), overrides, tmp_path / "runs", resume=False)
    assert str(caught.value) == said

"""`hpo init` writes a commented study file that passes `hpo check`: from five answers, or from a training script."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpo.config.yaml import parse_yaml
from tests.support.command import environment, hpo, run_in_process
from tests.support.schemas import assert_schema_agrees

NANO = """
out_dir = 'out'
eval_interval = 20
gradient_accumulation_steps = 5 * 8
batch_size = 12
n_layer = 12
learning_rate = 6e-4
max_iters = 600
beta2 = 0.95
compile = True
seed = 1337
config_keys = [k for k, v in globals().items() if not k.startswith('_')]
exec(open('configurator.py').read())
iter_num = 0
losses = {}
print(f"iter {iter_num}: loss {losses:.4f}")
print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}")
"""
ARGUMENTS = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1)
parser.add_argument("-b", "--batch-size", type=int, default=64)
parser.add_argument("--epochs", type=int, default=14)
parser.add_argument("--opt", choices=["adam", "sgd"])
parser.add_argument("--no-cuda", action="store_true")
"""
# A script of which a trial takes no time, with the line of a metric that `hpo init` must find
TRAINS = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--max_steps", type=int, default=4)
args = parser.parse_args()
for step in range(1, args.max_steps + 1):
    print(f"step {step} | val_loss: {(args.lr - 0.03) ** 2 + 1 / step:.3e}, done")
"""


def written(folder: Path, script: str) -> tuple[dict[str, Any], str]:
    (folder / "train.py").write_text(script)
    said = run_in_process("init", "--from", "train.py", cwd=folder)
    assert said.startswith("study.yaml: ok; ")
    text = (folder / "study.yaml").read_text()
    tree = parse_yaml(text)
    assert_schema_agrees(tree, accepted=True)
    return tree, text


def test_globals_of_a_script_in_the_style_of_nanogpt_become_a_study(tmp_path: Path) -> None:
    tree, text = written(tmp_path, NANO)
    assert tree["command"] == ["python", "train.py", "--seed={seed}", "{flags}"]
    assert tree["space"] == {
        "batch_size": {"choices": [6, 12, 24]},
        "learning_rate": {"low": 6e-5, "high": 6e-3, "log": True},
        "beta2": {"low": 0.8, "high": 0.995, "complement_log": True},
    }
    assert tree["baseline"] == [{"batch_size": 12, "learning_rate": 6e-4, "beta2": 0.95}]
    assert tree["steps"] == {"rungs": 8, "last": 600}
    assert tree["objective"] == "val_loss"
    assert "#   n_layer: {low: 6, high: 24}" in text
    assert "iter_num" not in text  # set after the command line is read


def test_options_of_argparse_become_a_study(tmp_path: Path) -> None:
    tree, text = written(tmp_path, ARGUMENTS)
    assert tree["space"] == {"lr": {"low": 0.1, "high": 10.0, "log": True}, "batch-size": {"choices": [32, 64, 128]}}
    assert tree["baseline"] == [{"lr": 1.0, "batch-size": 64}]
    assert "#   opt: {choices: [adam, sgd]}" in text
    assert "cuda" not in text
    assert "# metric: {pattern: " in text  # the script prints none


def test_the_study_of_a_script_runs_as_it_was_written(tmp_path: Path) -> None:
    tree, _ = written(tmp_path, TRAINS)
    assert tree["steps"] == {"rungs": 4, "last": 4}
    hpo("launch", "--study", "study.yaml", "--trials", "2", cwd=tmp_path)
    rows = parse_yaml(run_in_process("trials", "--format", "json", cwd=tmp_path))
    assert rows[0]["val_loss"] == pytest.approx((0.01 - 0.03) ** 2 + 1 / 4, rel=1e-3)
    assert rows[0]["lr"] == 0.01


def asked(folder: Path, *answers: str) -> subprocess.CompletedProcess[str]:
    """Answer the questions on standard input; an empty answer is the default."""
    command = [sys.executable, "-m", "hpo", "init", "-o", "new.yaml"]
    text = "".join(f"{answer}\n" for answer in answers)
    return subprocess.run(
        command, cwd=folder, env=environment(), input=text, capture_output=True, text=True, timeout=60
    )


def test_five_answers_become_a_study(tmp_path: Path) -> None:
    (tmp_path / "fit.py").touch()
    done = asked(tmp_path, "python fit.py {flags}", "lr=1e-4..1e-2log n=2..8 act=relu,gelu", "val_acc", "", "30")
    assert (done.returncode, done.stdout) == (0, "new.yaml: ok; 3 hyperparameters, 1 rung\n")
    assert done.stderr.count("]:") == 5
    tree = parse_yaml((tmp_path / "new.yaml").read_text())
    assert tree["space"] == {
        "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "n": {"low": 2, "high": 8},
        "act": {"choices": ["relu", "gelu"]},
    }
    assert (tree["objective"], tree["direction"], tree["budget"]) == ("val_acc", "maximize", {"trials": 30})
    assert_schema_agrees(tree, accepted=True)


def test_wrong_answers_and_files_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "fit.py").write_text("def f(:")
    ended = asked(tmp_path, "python fit.py {flags}")
    assert ended.returncode == 2
    assert "init: must have an answer to each question" in ended.stderr
    for answers, message in (
        (["python none.py {flags}"], "no such file in the current folder: none.py"),
        (["python fit.py {flags}", "lr"], "parameters: must be NAME=LOW..HIGH"),
        (["python fit.py {flags}", "lr=2..1"], "low must be less than high"),
    ):
        done = asked(tmp_path, *answers, *[""] * (5 - len(answers)))
        assert done.returncode == 2
        assert message in done.stderr
        assert not (tmp_path / "new.yaml").exists()
    assert "must be a Python script" in hpo("init", "--from", "fit.py", cwd=tmp_path, status=2).stderr
    assert "cannot be read" in hpo("init", "--from", "none.py", cwd=tmp_path, status=2).stderr
    (tmp_path / "study.yaml").write_text("x: 1")
    assert "must be a new file" in hpo("init", "--from", "fit.py", cwd=tmp_path, status=2).stderr
    assert (tmp_path / "study.yaml").read_text() == "x: 1"

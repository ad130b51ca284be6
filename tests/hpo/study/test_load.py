"""A study file is read with every mistake in it named, before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from hpo.errors import Problem
from hpo.study.load import load_study
from model.data.corpus_base import TRAINING_FIELDS
from model.section import flat
from tests.support.study_files import GONE, RANGE, VALID, edited, valid, write


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the study files are in, with two modules of the user's own."""
    (tmp_path / "mine.py").write_text(
        "from pydantic import BaseModel\n\nNUMBER = 3\n\n"
        "class Mine(BaseModel):\n    lr: float = 0.1\n\ndef train(config):\n    yield 1, config.lr\n"
    )
    (tmp_path / "broken.py").write_text("def train(:\n")
    (tmp_path / "raising.py").write_text("\n1 / 0\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(5)\n")
    (tmp_path / "needing.py").write_text("import not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def problems(study: str, *overrides: str, **given: Any) -> list[str]:
    with pytest.raises(Problem) as caught:
        load_study(study, overrides, **given)
    assert caught.value.status == 2
    return str(caught.value).splitlines()


COMPARED = "must not be searched, because trials with different"
MESSAGES: list[tuple[str, Any, list[str]]] = [
    # keys
    ("spaces", {}, ["spaces: no such field; did you mean space?"]),
    ("pruner", {"name": "medain"}, [
        "pruner.name: must be one of 'median', 'percentile', 'asha', 'halving', 'hyperband', 'patient', 'threshold', "
        "'wilcoxon', 'none', got 'medain'; did you mean 'median'?"
    ]),
    ("pruner", "medain", [
        "pruner: must be one of 'median', 'percentile', 'asha', 'halving', 'hyperband', 'patient', 'threshold', "
        "'wilcoxon', 'none', got 'medain'; did you mean 'median'?"
    ]),
    ("pruner", {"name": "median", "warmup": 1}, [
        "pruner.warmup: no such field; did you mean pruner.warmup_rungs?"
    ]),
    ("base/optimizer", {"lrr": 1}, ["base.optimizer.lrr: no such field; did you mean optimizer.lr?"]),
    ("base/optimiser", {"lr": 1}, ["base.optimiser: no such field; did you mean optimizer?"]),
    ("base/data", {"path": "x"}, ["base.data.path: no such field while data.name is 'python-docs'"]),
    ("base/data", {"name": "text"}, ["base.data.path: required"]),
    ("space/optimizer.lrr", RANGE, ["space.optimizer.lrr: no such field; did you mean optimizer.lr?"]),
    ("space/lr", RANGE, ["space.lr: no such field; did you mean optimizer.lr?"]),
    ("space/optimizer.momentum", RANGE, ["space.optimizer.momentum: no such field while optimizer.name is 'adamw'"]),
    ("space/optimizer.lr", {"low": 1, "high": 2, "stepp": 1}, [
        "space.optimizer.lr.stepp: no such field; did you mean space.optimizer.lr.step?"
    ]),
    ("baseline", [{"optimizer.lrr": 1}], ["baseline.0.optimizer.lrr: no such field; did you mean optimizer.lr?"]),
    ("baseline", [{}, {"optimizer": {"lr": 1}}], [
        "baseline.1.optimizer: must be a dotted field, such as optimizer.lr, got a mapping"
    ]),
    # bounds
    ("space/optimizer.beta2", {"low": 0.5, "high": 1.5}, [
        "space.optimizer.beta2.high: must be less than 1, got 1.5"
    ]),
    ("space/optimizer.beta2", {"low": -1, "high": 1.5}, [
        "space.optimizer.beta2.low: must be at least 0, got -1",
        "space.optimizer.beta2.high: must be less than 1, got 1.5",
    ]),
    ("space/optimizer.lr", {"low": 2, "high": 1}, [
        "space.optimizer.lr: low must be less than high, got low 2 and high 1"
    ]),
    ("space/optimizer.lr", {"low": 0, "high": 1, "log": True}, [
        "space.optimizer.lr: low must be greater than 0 for log, got 0"
    ]),
    ("space/optimizer.lr", {"low": 1, "high": 2, "step": 0.3}, [
        "space.optimizer.lr: high must be low plus a multiple of step, got 2; use 1.9"
    ]),
    ("space/run.batch_size", {"low": 1.5, "high": 4}, [
        "space.run.batch_size.low: must be a whole number, got 1.5"
    ]),
    ("space/run.device", {"choices": ["cpu", "gpu"]}, [
        "space.run.device.choices: must be one of 'auto', 'cpu', 'cuda', 'mps', got 'gpu'; did you mean 'cpu'?"
    ]),
    ("space/run.device", RANGE, ["space.run.device: must be choices, because the field is not a number"]),
    ("space/optimizer.lr", {"choices": []}, ["space.optimizer.lr.choices: must not be empty"]),
    ("space/optimizer.lr", {"choices": [1e-3, "fast"]}, [
        "space.optimizer.lr.choices: must be a number, got 'fast'"
    ]),
    ("space/optimizer.lr", 3, [
        "space.optimizer.lr: must be a mapping, got 3; use {low: A, high: B} or {choices: [...]}, or set the field "
        "in base"
    ]),
    ("space", {}, ["space: must have at least one field; add a field, or add arms to compare configurations"]),
    ("space", GONE, ["space: must have at least one field; add a field, or add arms to compare configurations"]),
    ("base/optimizer", {"lr": "1-e4"}, ["base.optimizer.lr: must be a number, got '1-e4'"]),
    ("base/run", 3, ["base.run: must be a mapping, got 3"]),
    ("base", [1], ["base: must be a mapping, got [1]"]),
    ("baseline", [{"optimizer.lr": -1}], ["baseline.0.optimizer.lr: must be greater than 0, got -1"]),
    ("baseline", {"optimizer.lr": 1}, ["baseline: must be a list, got {'optimizer.lr': 1}"]),
    ("seed", 1.5, ["seed: must be a whole number, got 1.5"]),
    # what does not go together
    ("base/model/n_head", 3, ["base.model: n_embd must be a multiple of n_head, got 32 and 3"]),
    ("space/model.n_head", {"choices": [1, 3]}, [
        "space.model.n_head.choices: model n_embd must be a multiple of n_head, got 32 and 3; "
        "no other values in the space make it valid"
    ]),
    ("base/run/tokens", 10, [
        "base: run.tokens must be at least rungs x batch_size x grad_accum x context = 512, "
        "so that every rung has an update, got 10"
    ]),
    ("space/run.grad_accum", {"low": 1, "high": 100}, [
        "space.run.grad_accum.high: run.tokens must be at least rungs x batch_size x grad_accum x context = 51200, "
        "so that every rung has an update, got 8192; no other values in the space make it valid"
    ]),
    ("space/data.max_documents", {"choices": [100, 200]}, [
        f"space.data.max_documents: {COMPARED} data cannot be compared"
    ]),
    ("space/data.split_seed", {"low": 0, "high": 3}, [
        f"space.data.split_seed: {COMPARED} data cannot be compared"
    ]),
    ("space/tokenizer.name", {"choices": ["bytes", "chars"]}, [
        "objective: must be val_bpb, because tokenizer.name is searched and nats per token of different tokenizers "
        "cannot be compared, got val_loss"
    ]),
    (
        "objective",
        "loss",
        ["objective: must be one of 'val_loss', 'val_bpb', 'ema_val_loss', 'ema_val_bpb', got 'loss'"],
    ),
    (
        "objective",
        "ema_val_loss",
        [
            "objective: must be used with regularization.ema or regularization.ema_half_life in the base, "
            "got ema_val_loss"
        ],
    ),
    ("space/run.tokens", {"low": 8192, "high": 9000}, [f"space.run.tokens: {COMPARED} lengths cannot be compared"]),
    ("space/run.rungs", {"choices": [2, 4]}, [f"space.run.rungs: {COMPARED} rungs cannot be compared"]),
    ("baseline", [{}] * 5, ["budget.trials: must be at least 5, one for each baseline, got 4"]),
    ("budget", {}, ["budget: must have trials, hours, tokens or target; add one of them"]),
    ("budget", {"tokens": 8191}, ["budget.tokens: must be at least 8192, the length of one run, got 8191"]),
    ("budget/trials", 0, ["budget.trials: must be greater than 0, got 0"]),
    ("rungs", 3, ["rungs: must be omitted, because run.rungs of the base is 4, got 3"]),
    # plugs
    ("train", "nowhere:train", ["train: no module 'nowhere' in the current folder or installed, got 'nowhere:train'"]),
    ("train", "needing:train", ["train: no module 'not_installed' in the current folder or installed, got 'needing:train'"]),  # noqa: E501
    ("train", "mine:trian", ["train: module mine has no 'trian'; did you mean train?"]),
    ("train", "mine", ["train: must be module:name, got 'mine'"]),
    ("train", "mine:NUMBER", ["train: must be callable, got mine:NUMBER"]),
    ("train", "broken:train", [
        "train: broken cannot be imported, SyntaxError: invalid syntax (broken.py, line 1)"
    ]),
    ("train", "raising:train", [
        "train: raising cannot be imported, ZeroDivisionError: division by zero (raising.py line 2)"
    ]),
    ("train", "leaving:train", ["train: leaving cannot be imported, SystemExit: 5 (leaving.py line 1)"]),
    ("config", "nowhere:Mine", ["config: no module 'nowhere' in the current folder or installed, got 'nowhere:Mine'"]),
    ("config", "mine:Mien", ["config: module mine has no 'Mien'; did you mean Mine?"]),
    ("config", "mine:train", ["config: must be a pydantic model, got mine:train"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "lines"), MESSAGES, ids=[f"{key}-{i}" for i, (key, _, _) in enumerate(MESSAGES)]
)
def test_mistake_is_named_by_file_key_rule_and_value(key: str, value: Any, lines: list[str]) -> None:
    assert problems(write(edited(key, value))) == [f"s.yaml: {line}" for line in lines]


def test_tokens_of_a_budget_hold_all_baselines_which_are_never_pruned() -> None:
    tree = edited("budget", {"tokens": 4 * 8192 - 1}) | {"baseline": [{}, {"optimizer.lr": 2e-3}], "baseline_seeds": 3}
    assert problems(write(tree)) == [
        "s.yaml: budget.tokens: must be at least 32768, the length of 4 runs, one for each baseline and each of "
        "baseline_seeds, got 32767"
    ]


@pytest.mark.parametrize("field", sorted(TRAINING_FIELDS - {"synthetic_order"}))
def test_what_leaves_the_validation_tokens_alone_is_searched_by_nats_per_token(field: str) -> None:
    ranges = {"layout": ["stream", "documents"], "curriculum": ["none", "easy"], "shuffle_documents": [False, True]}
    tree = edited("space", {f"data.{field}": {"choices": ranges.get(field, [0.0, 0.5])}})
    assert load_study(write(tree)).file.objective == "val_loss"


def test_name_of_a_data_set_on_the_hub_is_no_path(folder: Path) -> None:
    data = {"name": "hub", "path": "owner/name", "revision": "1"}
    assert flat(load_study(write(edited("base/data", data))).base)["data.path"] == "owner/name"
    (folder / "owner" / "name").mkdir(parents=True)
    assert flat(load_study(write(edited("base/data", data))).base)["data.path"] == str(folder / "owner" / "name")


def test_all_mistakes_are_named_together() -> None:
    tree = edited("space/optimizer.beta2", {"low": -1, "high": 1.5})
    tree["space"]["optimizer.lrr"] = RANGE
    tree["baseline"] = [{"optimizer.lr": -1}]
    tree["objective"] = "loss"
    assert [line.split(": ")[1] for line in problems(write(tree))] == [
        "space.optimizer.beta2.low",
        "space.optimizer.beta2.high",
        "space.optimizer.lrr",
        "baseline.0.optimizer.lr",
        "objective",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"base: {a: 1\nspace: 3", "line 2, column 6: expected ',' or '}', but got ':'"),
        (b"space: {}\nspace: {}", "line 2, column 1: space is given twice"),
        (b"\tspace: 1", "line 1, column 1: found character '\\t' that cannot start any token; indent with spaces"),
        (b"\xff\xfe\x00\x01", "must be text in UTF-8, got other bytes"),
        (b"\x00\x01", "not YAML (unacceptable character #x0000: special characters are not allowed)"),
    ],
)
def test_corrupt_file_is_named_with_line_and_column(text: bytes, line: str) -> None:
    Path("s.yaml").write_bytes(text)
    assert problems("s.yaml") == [f"s.yaml: {line}"]


@pytest.mark.parametrize(("text", "got"), [("", "nothing"), ("- 1\n- 2", "a list"), ("word", "'word'"), ("7", "7")])
def test_file_that_is_no_mapping_is_refused_with_the_keys(text: str, got: str) -> None:
    Path("s.yaml").write_text(text)
    keys = (
        "base, space, arms, seeds, equal, baseline, baseline_seeds, sampler, pruner, probe, budget, limits, "
        "targets, milestones, keep_best, objective, objectives, direction, seed, train, config, command, env, metric, "
        "steps, rungs, track, about"
    )
    assert problems("s.yaml") == [f"s.yaml: must be a mapping with the keys {keys}, got {got}"]


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("beta2sweep", "study: no study 'beta2sweep'; did you mean beta2_sweep? (there are architecture, beta2_sweep,"),
        ("zzz", "study: no study 'zzz' (there are architecture, beta2_sweep,"),
        ("", "study: no study '' (there are"),
        ("x" * 5000, "study: no study 'xxxx"),
        ("a\0b", "study: no study 'a\\x00b' (there are"),
        ("nowhere/s.yaml", "study: no such file: nowhere/s.yaml"),
        ("quickstart.yaml", "study: no such file: quickstart.yaml; did you mean quickstart?"),
        ("./", "study: no such file: ./"),
    ],
)
def test_unknown_study_is_refused_with_those_that_exist(name: str, beginning: str) -> None:
    (line,) = problems(name)
    assert line.startswith(beginning)


def test_study_is_found_by_name_here_and_in_studies_before_the_shipped_ones() -> None:
    Path("studies").mkdir()
    write(edited("budget/trials", 11), "studies/quickstart.yaml")
    assert load_study("quickstart").file.budget.trials == 11
    write(edited("budget/trials", 12), "quickstart.yaml")
    assert load_study("quickstart").file.budget.trials == 12


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lr", "--set: must be path=value, for example optimizer.lr=3e-4, got 'optimizer.lr'"),
        ("=3", "--set: must be path=value, for example optimizer.lr=3e-4, got '=3'"),
        ("a..b=3", "--set: must be path=value, for example optimizer.lr=3e-4, got 'a..b=3'"),
        ("optimizer.lrr=3", "--set optimizer.lrr: no such field; did you mean optimizer.lr?"),
        ("optimizer.lr=fast", "--set optimizer.lr: must be a number, got 'fast'"),
        ("optimizer.lr=-1", "--set optimizer.lr: must be greater than 0, got -1"),
        ("optimizer.lr=", "--set optimizer.lr: must be a number, got ''"),
        ("optimizer=3", "--set optimizer: must be a mapping, got 3"),
        ("data.name=text", "--set data.path: required"),
        ("data.path=x", "--set data.path: no such field while data.name is 'python-docs'"),
        ("budget.trials=3", "--set budget: no such field"),
        ("model.n_head=3", "--set model: n_embd must be a multiple of n_head, got 32 and 3"),
        (
            "run.tokens=10",
            "--set: run.tokens must be at least rungs x batch_size x grad_accum x context = 512, "
            "so that every rung has an update, got 10",
        ),
        ("optimizer.name=sgd", None),
    ],
)
def test_override_is_checked_like_the_file(override: str, line: str | None) -> None:
    write(edited("space/optimizer.beta2", {"low": 0.5, "high": 0.9}))
    # what is wrong only together with the file is the file's line
    together = "s.yaml: space.optimizer.beta2: no such field while optimizer.name is 'sgd'"
    assert problems("s.yaml", override) == [line or together]


def test_override_and_budget_replace_what_the_file_says() -> None:
    study = load_study(write(VALID), ["optimizer.lr=3e-4", "run.compile=off"], {"trials": 9, "hours": None}, 5)
    assert flat(study.base)["optimizer.lr"] == 3e-4
    assert flat(study.base)["run.compile"] == "off"
    assert (study.file.budget.trials, study.file.seed) == (9, 5)
    assert problems("s.yaml", budget={"trials": 0}) == ["s.yaml: budget.trials: must be greater than 0, got 0"]


def test_path_of_the_text_is_made_absolute_since_workers_start_elsewhere(folder: Path) -> None:
    study = valid(None, "data.name=text", "data.path=notes/*.txt")
    assert flat(study.base)["data.path"] == str(folder / "notes" / "*.txt")


def test_configuration_of_the_users_own_must_say_how_many_rungs_a_run_has() -> None:
    own = {"space": {"lr": RANGE}, "train": "mine:train", "config": "mine:Mine", "objective": "error"}
    assert problems(write(own)) == [
        "s.yaml: rungs: required with a config that has no field run.rungs; set the number of values that a run reports"
    ]
    study = valid({**own, "rungs": 3})
    assert (study.rungs, study.rung_tokens, study.file.objective) == (3, None, "error")


def test_a_parametrization_is_refused_with_a_training_function_of_the_user() -> None:
    model = {"parametrization": "mup", "n_embd": 32, "n_head": 2, "base_width": 16}
    tree = edited("base/model", model) | {"train": "mine:train"}
    rule = "must be standard with a training function of your own, got mup"
    assert problems(write(tree)) == [f"s.yaml: base.model.parametrization: {rule}"]

"""A valid study file of a small GPT, and changes of it."""

from pathlib import Path
from typing import Any

from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.study.load import load_study
from hpo.study.spec import Study

VALID: dict[str, Any] = {
    "base": {
        "tokenizer": {"name": "bytes"},
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "context": 32},
        "run": {"tokens": 8192, "rungs": 4, "batch_size": 4},
    },
    "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}},
    "baseline": [{}],
    "budget": {"trials": 4},
}
RANGE = {"low": 1e-3, "high": 1e-2}
GONE = object()  # as a value of `edited`: without the key


def edited(key: str, value: Any) -> dict[str, Any]:
    """Return the valid file with one key, written as a/b/c, replaced."""
    tree: dict[str, Any] = parse_yaml(dump_yaml(VALID))
    *parents, leaf = key.split("/")
    here = tree
    for parent in parents:
        here = here.setdefault(parent, {})
    if value is GONE:
        del here[leaf]
    else:
        here[leaf] = value
    return tree


def write(tree: Any, name: str = "s.yaml") -> str:
    Path(name).write_text(dump_yaml(tree))
    return name


def valid(tree: dict[str, Any] | None = None, *overrides: str) -> Study:
    return load_study(write(tree or VALID), overrides)

"""Studies of all kinds whose reports are tested: a search, arms, failing, diverging and conditional trials."""

from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot
from hpo.config.yaml import dump_yaml
from hpo.storage.store import Store
from hpo.study.load import load_study
from tests.support.comparisons import run_study

MODULE = """
import math
import random
from pydantic import BaseModel
from typing import Annotated, Literal
from pydantic import Field


class Plain(BaseModel):
    name: Literal["plain"] = "plain"
    lr: float = 0.01


class Kept(BaseModel):
    name: Literal["kept"] = "kept"
    lr: float = 0.01
    beta: float = 0.9


class Config(BaseModel):
    opt: Annotated[Plain | Kept, Field(discriminator="name")] = Plain()
    kind: str = "a<b>&'c'\\"d\\""
    width: int = 4
    fail: bool = False
    seed: int = 0

    def rung_tokens(self) -> float:
        return 1000.0


class Bare(BaseModel):
    kind: str = "x"
    seed: int = 0


def train(config):
    if config.fail:
        raise ValueError("<script>alert('failed')</script>")
    luck = random.Random(repr(config)).gauss(0, 0.02)
    for rung in range(1, 5):
        if config.width == 8 and rung > 2:
            yield rung, math.nan
        yield rung, 1 + (math.log10(config.opt.lr) + 1.5) ** 2 / 4 + 1 / rung + luck


def bare(config):
    for rung in range(1, 5):
        yield rung, {"x": 1.0, "y": 2.0, "z": 3.0}[config.kind] / rung
"""
ODD = """a<b>&'c'"d\""""
LR = {"low": 1e-3, "high": 1e-1, "log": True}
PRUNER = {"name": "median", "startup_trials": 4, "min_trials": 4, "warmup_rungs": 1}
STUDIES: dict[str, dict[str, Any]] = {
    "search": {
        "space": {"opt.lr": LR, "width": {"low": 1, "high": 8}, "kind": {"choices": [ODD, "e"]}},
        "baseline_seeds": 4,
        "pruner": PRUNER,
        "budget": {"trials": 36},
        "targets": {"good <1": 1.3},
    },
    "one": {"space": {"opt.lr": LR}, "budget": {"trials": 1}},
    "failing": {"space": {"opt.lr": LR}, "base": {"fail": True}, "budget": {"trials": 2}},
    "conditional": {
        "space": {"opt.name": {"choices": ["plain", "kept"]}, "opt.lr": LR, "opt.beta": {"low": 0.5, "high": 0.9}},
        "budget": {"trials": 14},
    },
    "categories": {
        "space": {"kind": {"choices": ["x", "y", "z"]}},
        "config": "shown:Bare",
        "train": "shown:bare",
        "budget": {"trials": 12},
    },
    "diverging": {"space": {"width": {"choices": [8]}, "opt.lr": LR}, "base": {"width": 8}, "budget": {"trials": 3}},
    "arms": {"arms": {"low <lr>": {"opt.lr": 1e-3}, "high": {"opt.lr": 0.03}}, "seeds": [1, 2, 3]},
}


def run_reported_study(store: Store, folder: Path, name: str, **keys: Any) -> Snapshot:
    """Run a study of the module; return its snapshot."""
    (folder / "shown.py").write_text(MODULE)
    tree = {"train": "shown:train", "config": "shown:Config", "rungs": 4, "sampler": {"name": "random"}}
    tree = {k: v for k, v in (tree | STUDIES[name] | keys).items() if not ("arms" in STUDIES[name] and k == "sampler")}
    (folder / f"{name}.yaml").write_text(dump_yaml(tree))
    return run_study(store, load_study(str(folder / f"{name}.yaml")))

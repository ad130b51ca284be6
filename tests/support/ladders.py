"""A training function with a planted law: the best lr and batch move with tokens as powers, and the loss is known."""

from pathlib import Path
from typing import Any

from hpo.config.yaml import dump_yaml

LR_EXPONENT, BATCH_EXPONENT = 0.2, 0.5  # of the optimum in tokens

MODULE = """
import math
import random
from typing import Literal
from pydantic import BaseModel, Field


class Optimizer(BaseModel):
    lr: float = Field(default=0.01, gt=0)
    beta2: float = Field(default=0.95, ge=0, lt=1)


class Run(BaseModel):
    tokens: int = 1_000
    batch_size: int = Field(default=8, ge=1)
    grad_accum: int = Field(default=1, ge=1)
    seed: int = 0
    rungs: int = 2


class Config(BaseModel):
    optimizer: Optimizer = Optimizer()
    run: Run = Run()
    kind: Literal["plain", "wrong"] = "plain"
    noise: float = 0.002
    dropout: float = Field(default=0.0, ge=0)
    sign: int = 1


def best(tokens):
    return 0.01 * (tokens / 1_000) ** 0.2, 8 * (tokens / 1_000) ** 0.5


def floor(tokens):
    return 2.0 + 1.5 * (tokens / 1_000) ** -0.3


def train(config):
    lr, batch = best(config.run.tokens)
    u, v = math.log(config.optimizer.lr / lr), math.log(config.run.batch_size * config.run.grad_accum / batch)
    loss = floor(config.run.tokens) + 0.05 * (u - 0.3 * v) ** 2 + 0.03 * v * v + (config.kind == "wrong")
    loss += 0.2 * config.dropout
    loss += config.noise * random.Random(repr((config.run.seed, config.optimizer.lr))).gauss(0.0, 1.0)
    for rung in range(1, config.run.rungs + 1):
        yield rung, config.sign * (loss + 1.0 - rung / config.run.rungs)
"""


def ladder_search(folder: Path, name: str = "small", **keys: Any) -> Path:
    """Write the module and a search of lr, batch and a name; return the path of the study."""
    (folder / "laws.py").write_text(MODULE)
    tree = {
        "train": "laws:train",
        "config": "laws:Config",
        "objective": "loss",
        "base": {"optimizer": {"lr": 0.09}},
        "space": {
            "optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True},
            "run.batch_size": {"low": 1, "high": 128, "log": True},
            "kind": {"choices": ["plain", "wrong"]},
        },
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
        "budget": {"trials": 12},
    }
    path = folder / f"{name}.yaml"
    path.write_text(dump_yaml({**tree, **keys}))
    return path

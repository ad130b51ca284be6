"""A training function with planted (known) curves: a study of dozens of trials takes seconds."""

import sys
import textwrap
from pathlib import Path
from typing import Any

from hpo.config.yaml import dump_yaml
from tests.support.tiny import tiny

MODULE = '''
import os
import random
import time
from collections.abc import Iterator
from pydantic import BaseModel, Field


class Config(BaseModel):
    x: float = Field(default=0.5, ge=0.0, le=1.0)
    seed: int = 0
    noise: float = 0.0
    rungs: int = 4
    pause: float = 0.0


def train(config: Config) -> Iterator[tuple[int, float]]:
    """Report a curve that falls from 3 to 1 + x. A smaller x is better at every rung. Noise depends on the seed."""
    offset = config.noise * random.Random(repr((config.seed, config.x))).gauss(0.0, 1.0) if config.noise else 0.0
    for rung in range(1, config.rungs + 1):
        time.sleep(config.pause)
        yield rung, 1.0 + config.x + (1.0 - rung / config.rungs) + offset


def noted(config: Config) -> Iterator[tuple[int, float]]:
    """Train as `train`, and create one file for each start of a run."""
    with open(f"start-{os.getpid()}-{time.monotonic_ns()}", "w") as file:
        file.write(str(config.x))
    yield from train(config)
'''


def planted_study(folder: Path, name: str = "planted", **keys: Any) -> Path:
    """Write the module and a study of its `x`; return the path of the study."""
    (folder / "curves.py").write_text(textwrap.dedent(MODULE))
    tree = {
        "train": "curves:train",
        "config": "curves:Config",
        "rungs": 4,
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "sampler": {"name": "random"},
        "budget": {"trials": 12},
    }
    path = folder / f"{name}.yaml"
    path.write_text(dump_yaml({**tree, **keys}))
    return path


def edit(folder: Path, old: str, new: str) -> None:
    """Replace the first `old` in the module, and drop the module from sys.modules, so that it is imported again."""
    curves = folder / "curves.py"
    before, match, after = curves.read_text().partition(old)
    assert match, f"{old!r} is not in the module"
    curves.write_text(before + new + after)
    sys.modules.pop("curves", None)


def gpt_study(path: Path, **keys: Any) -> Path:
    """Write the file of a study that trains four small GPTs; return its path."""
    base = tiny({"optimizer.lr": 3e-3}).model_dump(mode="json")
    space = {"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}}
    tree = {"base": base, "space": space, "sampler": {"name": "random"}, "pruner": {"name": "none"}}
    path.write_text(dump_yaml({**tree, "budget": {"trials": 4}, **keys}))
    return path

"""A search and a ladder of GPT configurations whose losses follow a known law, so that they take no training."""

from pathlib import Path
from typing import Any

from hpo.analysis.export import select_trial
from hpo.analysis.snapshot import Snapshot
from hpo.config.yaml import dump_yaml
from hpo.storage.store import Store
from hpo.study.load import load_study
from hpo.transfer.plan import LadderRequest, plan_ladder
from tests.support.comparisons import run_study
from tests.support.tiny import UPDATE, tiny

TOKENS = 24 * UPDATE  # of a run of the search
BEST_LR, EXPONENT = 0.004, -0.25  # the best rate at TOKENS, and how it changes with tokens

LAW = f"""
import math
import random


def train(config):
    ratio = config.run.tokens / {TOKENS}
    best = {BEST_LR} * ratio**{EXPONENT}
    luck = random.Random(repr((config.run.seed, config.optimizer.lr))).gauss(0, 0.001)
    loss = 2 + ratio**-0.1 + 0.1 * math.log(config.optimizer.lr / best) ** 2 + luck
    for rung in range(1, config.run.rungs + 1):
        yield rung, loss + 1 - rung / config.run.rungs
"""


def planted_search(store: Store, folder: Path, **keys: Any) -> Snapshot:
    """Run a search of lr whose best trial is near BEST_LR."""
    (folder / "law.py").write_text(LAW)
    tree = {
        "train": "law:train",
        "base": tiny({"run.keep_checkpoints": "none"}).model_dump(mode="json"),
        "space": {"optimizer.lr": {"low": 1e-4, "high": 0.1, "log": True}},
        "sampler": "random",
        "pruner": "none",
        "budget": {"trials": 12},
    }
    (folder / "lawful.yaml").write_text(dump_yaml(tree | keys))
    return run_study(store, load_study(str(folder / "lawful.yaml")))


def planted_ladder(store: Store, search: Snapshot, tokens: int) -> Snapshot:
    """Run the ladder of such a search towards a longer run."""
    request = LadderRequest("lawful-transfer", {"run.tokens": tokens}, 4, None)
    return run_study(store, plan_ladder(search, select_trial(search, None), request))

"""Measure what parts of a configuration cost beside the defaults, in tokens per second, without and with compiled
steps: dropout, Muon, RMS norm, rotary positions, and a mixture of experts in place of the MLP; the share of a run that
validation takes, and the speed of validation in other batches.

    python bench/features.py [--rounds 7] [--threads 1] [--seconds 0.5]

The configurations take turns in one process, as in bench/train.py. The ratios are (configuration / defaults), both
compiled or both not.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.train import DEFAULT, LONG, clock, take_turns, timing_options
from model.config import TrainConfig
from model.data.prepare import prepare
from model.section import updated
from model.train.trainer import Trainer

BATCHES = (8_192, 2_048, 16_384)  # tokens of a validation batch; the first is the trainer's
FEATURES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "dropout 0.1": {"regularization.dropout": 0.1},
    "muon": {"optimizer.name": "muon"},
    "rmsnorm": {"model.norm": "rmsnorm"},
    "rope": {"model.position": "rope"},
    "mixture of experts": {"model.name": "moe"},
}


def sides_of(compiled: str) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Return what trains each configuration for some updates, and the tokens of one update. compiled: on or off."""
    first = TrainConfig()
    prepared = prepare(first.data, first.tokenizer)
    configs = {n: updated(first, LONG | DEFAULT | v | {"run.compile": compiled}) for n, v in FEATURES.items()}
    return {name: (Trainer([config], prepared)._train, config.update_tokens()) for name, config in configs.items()}


def validation_shares(compiled: str, rounds: int) -> list[float]:
    """Return the share of a default run that its validations take, for each round. compiled: on or off."""
    config = updated(TrainConfig(), DEFAULT | {"run.compile": compiled})
    trainer = Trainer([config], prepare(config.data, config.tokenizer))
    evaluate, now = trainer.validation.evaluate, clock()
    trainer._train(2)
    evaluate()
    shares, updates = [], 50
    of_run = config.run.tokens / config.update_tokens() / updates
    for _ in range(rounds):
        began = now()
        trainer._train(updates)
        trained = now()
        evaluate()
        validating = (now() - trained) * config.run.rungs
        shares.append(validating / ((trained - began) * of_run + validating))
    return shares


def evaluations(compiled: str) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Return what evaluates the validation split in batches of other sizes, and its targets. compiled: on or off."""
    config = updated(TrainConfig(), DEFAULT | {"run.compile": compiled})
    prepared = prepare(config.data, config.tokenizer)
    sides: dict[str, tuple[Callable[[int], Any], int]] = {}
    for tokens in BATCHES:
        validation = Trainer([config], prepared).validation
        validation.batch_size = tokens // config.model.context
        run = partial(_repeat, validation.evaluate)
        sides[f"validation by {tokens:,}"] = run, validation.split.n_targets
    return sides


def _repeat(function: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        function()


def main() -> None:
    """Print all comparisons."""
    arguments = timing_options(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    for compiled in ("off", "on"):
        print(f"run.compile {compiled}")
        take_turns(sides_of(compiled), arguments.rounds, arguments.seconds)
        shares = validation_shares(compiled, arguments.rounds)
        spread = f"{min(shares):.1%} to {max(shares):.1%}"
        take_turns(evaluations(compiled), arguments.rounds, arguments.seconds)
        print(f"  validation: {statistics.median(shares):.1%} of a run ({spread})", flush=True)


if __name__ == "__main__":
    main()

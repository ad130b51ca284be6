"""Compare the trainer with a plain loop over the same network and with a nanoGPT-style loop, in tokens per second:
without and with compiled steps, alone and in packs. The size mainrun is measured only if it is named.

    python bench/train.py [--rounds 7] [--threads 1] [--device cpu] [--sizes 'micro;default']

No side validates. The sides take turns in one process, so that other load slows all of them alike. On one CPU thread,
the time is that of the process, without the time that other programs take. The script prints the median over the rounds
of the ratio (side / plain loop), and the smallest and largest ratio. Steps are compiled before the first round.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F

from bench.gpu.nanogpt import training_loop
from model.config import TrainConfig
from model.data.batches import TrainingBatches
from model.data.prepare import prepare
from model.data.prepared import PreparedData
from model.nn.gpt import Network
from model.nn.init import initial_weights
from model.optim.optimizers import AdamW
from model.section import updated
from model.train.trainer import Trainer

LONG = {"run.tokens": 10**12, "run.rungs": 1}  # more tokens than any measurement trains
MICROGPT = {
    "tokenizer.name": "bytes",
    "model.n_layer": 1,
    "model.n_embd": 16,
    "model.context": 16,
    "run.batch_size": 1,
}
DEFAULT = {"model.n_layer": 2, "model.n_embd": 96}
MAINRUN = {
    "tokenizer.vocab_size": 16_000,
    "model.n_layer": 6,
    "model.n_embd": 512,
    "model.n_head": 8,
    "model.context": 128,
    "run.batch_size": 64,
}
# Values of each size, and the packs that are measured.
SIZES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "micro": (MICROGPT, (4, 16, 64)),
    "2x64": ({"model.n_layer": 2, "model.n_embd": 64, "model.context": 64, "run.batch_size": 16}, ()),
    "default": (DEFAULT, (4,)),
    "default, dropout 0.1": (DEFAULT | {"regularization.dropout": 0.1}, ()),
    "4x256": ({"model.n_layer": 4, "model.n_embd": 256, "run.batch_size": 8}, ()),
    "mainrun": (MAINRUN, ()),
}
LONGEST = "mainrun"  # its updates take several seconds


def plain(config: TrainConfig, prepared: PreparedData, device: torch.device) -> Callable[[int], None]:
    """Return a function that trains for some updates in a plain PyTorch loop."""
    assert isinstance(config.optimizer, AdamW)
    rule, B, p = config.optimizer, config.run.batch_size, config.regularization.dropout
    network = Network(config.model, prepared.vocab_size, device)
    initial = initial_weights(config.model, prepared.vocab_size, config.run.seed)
    weights = {name: weight[None].to(device).requires_grad_() for name, weight in initial.items()}
    order = TrainingBatches(prepared.splits["train"], config.data, config.model.context, config.run.seed)
    numbers = {k: torch.tensor([v], device=device) for k, v in config.regularization.numbers().items() if v > 0}
    groups = [
        {"params": [q for q in weights.values() if q.ndim >= 3], "weight_decay": rule.weight_decay},
        {"params": [q for q in weights.values() if q.ndim < 3], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, rule.lr, (rule.beta1, rule.beta2), rule.eps, fused=True)
    total, done = config.marks()[-1], count()

    def run(updates: int) -> None:
        for _ in range(updates):
            step = next(done)
            for group in optimizer.param_groups:
                group["lr"] = rule.lr * config.schedule.multiplier((step + 0.5) / total)
            x, y = (torch.from_numpy(a).to(device) for a in order.batch(step * B, B))
            half = torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16")
            with half, patch("model.nn.context.dropout", lambda x, *_: F.dropout(x, p)):
                logits = network(weights, x[None], numbers)
            loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), config.clip.numbers()["max_norm"])
            optimizer.step()

    return run


def clock() -> Callable[[], float]:
    """Return a clock: on one CPU thread that of the process, without the time that other programs take."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


def speed(run: Callable[[int], Any], updates: int, tokens: int) -> float:
    """Return tokens per second over some updates. tokens: of one update."""
    now = clock()
    began = now()
    run(updates)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return updates * tokens / (now() - began)


def take_turns(sides: dict[str, tuple[Callable[[int], Any], int]], rounds: int, seconds: float) -> None:
    """Print the speed of each side and its ratio to the first. sides: what to run, tokens of one update."""
    updates = {}
    for name, (run, tokens) in sides.items():
        run(2)
        updates[name] = max(2, round(speed(run, 3, tokens) * seconds / tokens))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (run, tokens) in sides.items():
            rates[name].append(speed(run, updates[name], tokens))
    first = next(iter(rates.values()))
    for name, speeds in rates.items():
        ratios = [a / b for a, b in zip(speeds, first, strict=True)]
        low, median, high = min(ratios), statistics.median(ratios), max(ratios)
        spread = "" if speeds is first else f"   x {median:.3f} ({low:.3f}..{high:.3f})"
        print(f"  {name:24s} {statistics.median(speeds):12,.0f} tokens/s{spread}", flush=True)


def sides_of(config: TrainConfig, packs: Sequence[int]) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Return the sides of one size: what to run, and the tokens of one update of all runs."""
    prepared, tokens = prepare(config.data, config.tokenizer), config.update_tokens()
    eager, compiled = (updated(config, {"run.compile": value}) for value in ("off", "on"))
    alone = Trainer([eager], prepared)
    sides: dict[str, tuple[Callable[[int], Any], int]] = {
        "plain loop": (plain(alone.shared, prepared, alone.device), tokens),
        "nanoGPT-style loop": (training_loop(alone.shared, prepared, alone.device, compiled=False), tokens),
        "trainer": (alone._train, tokens),
        "trainer, compiled": (Trainer([compiled], prepared)._train, tokens),
    }
    for size in packs:
        for name, rule in (("", eager), (", compiled", compiled)):
            runs = [updated(rule, {"run.seed": seed}) for seed in range(size)]
            sides[f"pack of {size}{name}"] = (Trainer(runs, prepared)._train, tokens * size)
    return sides


def timing_options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of how long is measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds of one side in one round")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main() -> None:
    """Print all comparisons."""
    parser = timing_options(__doc__)
    parser.add_argument("--device", default="cpu")
    sizes = ";".join(name for name in SIZES if name != LONGEST)
    parser.add_argument("--sizes", default=sizes, help="sizes of the network, such as 'micro;default'")
    parser.add_argument("--set", action="append", default=[], help="a field of all configurations: PATH=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    fields = {"run.device": arguments.device} | dict(field.split("=", 1) for field in arguments.set)
    for name in arguments.sizes.split(";"):
        values, packs = SIZES[name]
        config = updated(TrainConfig(), LONG | values | fields)
        print(f"{name}: {config.model.n_layer} layers, width {config.model.n_embd}, {config.update_tokens()} tokens")
        take_turns(sides_of(config, packs), arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()

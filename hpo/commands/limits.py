"""hpo limits: the largest batch that fits, found by estimate and then by trying, each try a process of its own."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.config.files import path_of, read_config
from hpo.config.overrides import overridden
from hpo.config.validation import messages
from hpo.console import Format, number, rows, say
from hpo.errors import NothingFeasible, Problem, WorkFailed
from hpo.runs.datasets import prepare_data
from hpo.runs.resources import available_cores, set_thread_environment
from hpo.study.spec import DEFAULT_CONFIG, DEFAULT_TRAIN
from model.config import TrainConfig
from model.data.prepare import PreparedData
from model.section import updated

BATCH = "run.batch_size"
TRIES = 8
TRY_S = 900.0
MOST_TOKENS = 2**19  # of a batch: that of the GPT-3 of 125 million parameters (Brown et al. 2020, table 2.1)
SHARE = 0.9  # of what is free: other programs and what the allocator loses need some too


@dataclass
class Search:
    """What is known of the batches of a configuration: estimates, and the tries that were made."""

    config: TrainConfig
    vocab_size: int
    runs: int
    device: str
    room: int
    """Bytes that a run may need."""
    cap: int
    """The largest batch that makes sense."""
    estimates: dict[int, int] = field(default_factory=dict)
    tries: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    best: int = 0
    """The largest batch that ran."""
    worst: int = 0
    """The smallest batch that did not, or one above the cap."""

    def __post_init__(self) -> None:
        self.worst = self.cap + 1

    def estimate(self, batch: int) -> int:
        from model.memory.estimate import estimate

        if batch not in self.estimates:
            self.estimates[batch] = estimate(self.of(batch), self.vocab_size, self.runs).total
        return self.estimates[batch]

    def of(self, batch: int) -> TrainConfig:
        return updated(self.config, {BATCH: batch})

    def needs(self, batch: int) -> int:
        """Return the bytes of a batch by estimate, corrected by what the largest that ran was measured to need."""
        from model.memory.capacity import calibrated

        if self.best:
            return round(self.estimate(batch) * self.tries[self.best]["peak_bytes"] / self.estimate(self.best))
        return calibrated(self.estimate(batch), self.device)  # by earlier runs on this device

    def next(self) -> int | None:
        """Return the batch to try next, none where the limit is known well enough."""
        if len(self.tries) >= TRIES or self.worst - self.best <= max(1, self.best // 16):
            return None
        if self.worst <= self.cap:  # one did not fit: by halves, since the estimate was too low
            return self.worst * 3 // 4 if self.best == 0 and self.worst > 2 else (self.best + self.worst) // 2
        guess = largest(lambda batch: self.needs(batch) <= self.room, self.cap)
        return guess if guess > self.best else min(self.cap, self.best + max(1, self.best // 8))

    def take(self, batch: int, found: Mapping[str, Any]) -> None:
        """Take in what came of a try."""
        from model.memory.capacity import learn

        self.tries[batch] = found
        measured = found.get("peak_bytes")
        if measured is not None:
            learn(self.estimate(batch), measured, self.device)
        if measured is not None and measured <= self.room:
            self.best = max(self.best, batch)
        else:
            self.worst = min(self.worst, batch)

    def table(self) -> list[dict[str, Any]]:
        """Return a record for each batch tried, and for each power of two below the limit."""
        powers = {2**n for n in range(self.cap.bit_length()) if 2**n < self.worst}
        return [self._record(batch) for batch in sorted(powers | self.tries.keys())]

    def _record(self, batch: int) -> dict[str, Any]:
        tried = self.tries.get(batch, {})
        measured, speed = tried.get("peak_bytes"), tried.get("tokens_per_second")
        return {
            "batch_size": batch,
            "estimated_gb": round(self.needs(batch) / 1e9, 3),
            "measured_gb": None if measured is None else round(measured / 1e9, 3),
            "tokens_per_second": None if speed is None else round(speed),
            "fits": None if self.best < batch < self.worst else batch <= self.best,
        }


def limits(path: Path, overrides: Sequence[str], memory: float | None, runs: int, format: Format) -> None:
    """Print what batches of a configuration need, and the largest that fits.

    memory: in GB, for all; none: most of what is free.

    Raises:
        Problem: the file is no configuration of ours, or asks for what is not here.
        NothingFeasible: not even a batch of one fits.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # which ends a try that is going on, too
    if memory is not None and not memory > 0:
        raise Problem(f"--memory: must be above 0, in GB, got {memory:g}")
    config = configuration(path, overrides)
    set_thread_environment(available_cores())  # before torch is loaded
    data = prepare_data(config)
    cap, why = capped(config, data)
    device, room = _room(config, memory)
    search = Search(config, data.vocab_size, runs, device, room, cap)
    say(f"{room / 1e9:.2f} GB on {device}; {BATCH} up to {cap:,}, {why}")
    while (batch := search.next()) is not None:
        say(f"{BATCH}={batch}: about {search.needs(batch) / 1e9:.2f} GB by estimate; trying")
        search.take(batch, found := attempt(search.of(batch), runs, room))
        say(f"{BATCH}={batch}: {_told(found, room)}")
    rows(search.table(), format)
    _conclude(search, why)


def configuration(path: Path, overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration of a file, or of a base by its name.

    Raises:
        Problem: there is none, it is not ours to estimate, or the batch that is looked for is given.
    """
    path = path_of(path)
    tree, provenance = read_config(path)
    for key, ours in ("train", DEFAULT_TRAIN), ("config", DEFAULT_CONFIG):
        if (own := provenance.get(key, ours)) != ours:
            raise Problem(f"{path}: provenance.{key}: must be {ours}, whose memory can be estimated, got {own}")
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise Problem(*(f"{path}: {text}" for text in messages(error, TrainConfig))) from None
    for override in overrides:
        if override.split("=")[0].strip() == BATCH:
            raise Problem(f"--set {override}: {BATCH} is what is looked for; leave it out")
    return overridden(config, overrides)


def capped(config: TrainConfig, data: PreparedData) -> tuple[int, str]:
    """Return the largest batch that makes sense, and why no larger one does."""
    from model.data.batches import TrainingBatches

    run, context = config.run, config.model.context
    order = TrainingBatches(data.splits["train"], config.data, context, run.seed)
    rung = config.rung_tokens() if run.align else run.tokens / run.rungs
    bounds = [
        (int(rung) // (run.grad_accum * context), f"where a rung of run.tokens={run.tokens} is one update"),
        (order.n_rows(0) // run.grad_accum, "where an update is the whole training text"),
        (MOST_TOKENS // context, f"{MOST_TOKENS:,} tokens in a batch"),
    ]
    cap, why = min(bounds)
    return max(1, cap), why


def largest(fits: Callable[[int], bool], cap: int) -> int:
    """Return the largest batch of at most `cap` that fits, by doubling and halving; 1 where none does."""
    low, high = 1, 2
    while high <= cap and fits(high):
        low, high = high, 2 * high
    high = min(high, cap + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def attempt(config: TrainConfig, runs: int, room: int) -> dict[str, Any]:
    """Train two updates in a process of its own, bound to `room` bytes; return what it answered.

    Raises:
        WorkFailed: it failed for another reason than memory.
    """
    # Accumulating adds no memory, only time.
    whole = updated(config, {"run.grad_accum": 1})
    asked = {"config": whole.model_dump(mode="json"), "updates": 2, "runs": runs, "limit": room}
    command = [sys.executable, "-m", "model.memory.dry_run"]
    name = f"{BATCH}={config.run.batch_size}"
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=TRY_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise WorkFailed(f"{name}: two updates took more than {TRY_S:.0f} s; give less --memory") from None
    if done.returncode < 0:  # the system, which had no more to give
        return {"out_of_memory": f"the system ended it with {signal.Signals(-done.returncode).name}"}
    if done.returncode:
        last = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise WorkFailed(f"{name}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in found:
        raise WorkFailed(f"{name}: {found['error']}")
    return found


def _room(config: TrainConfig, memory: float | None) -> tuple[str, int]:
    """Return the device and the bytes that a run may need there.

    Raises:
        Problem: the device is not here, or has not so much.
    """
    from model.errors import ConfigError
    from model.memory.capacity import capacity
    from model.train.device import resolve

    try:
        device = resolve(config).run.device
    except ConfigError as error:
        raise Problem(str(error)) from None
    there = capacity(device)
    if memory is None:
        return device, int(SHARE * there)
    if memory * 1e9 > there:
        raise Problem(f"--memory: must be at most {there / 1e9:.1f}, the GB free on {device}, got {memory:g}")
    return device, int(memory * 1e9)


def _told(found: Mapping[str, Any], room: int) -> str:
    if "peak_bytes" not in found:
        return f"does not fit: {found['out_of_memory']}"
    over = ", which is too much," if found["peak_bytes"] > room else ""
    speed = f"{number(found['tokens_per_second'])} tokens/s"
    loss = "" if found["loss"] is not None else "; its loss is not finite, lower optimizer.lr"
    return f"ran in {found['peak_bytes'] / 1e9:.2f} GB{over} at {speed}{loss}"


def _conclude(search: Search, why: str) -> None:
    """Say what to type.

    Raises:
        NothingFeasible: nothing ran.
    """
    if not search.best:
        raise NothingFeasible(
            f"{BATCH}: none fits in {search.room / 1e9:.2f} GB, {search.worst} was the smallest tried; "
            "use a smaller model.context or model, or give more --memory"
        )
    if search.worst > search.cap:
        say(f"{BATCH}={search.best} ran; larger ones were not tried, {why}")
    else:
        say(f"{BATCH}={search.best} ran, {search.worst} did not")
    say("a larger batch makes fewer updates of the same tokens: results change, and the best learning rate with them")
    say(f"type: --set {BATCH}={search.best}" + (f" --pack {search.runs}" if search.runs > 1 else ""))

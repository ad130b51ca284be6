"""The training loop: an iterator over rungs, for one run or for K of equal shape side by side."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model import checkpoint
from model.config import TrainConfig
from model.data import Prepared, bits_per_byte, prepare
from model.device import resolve
from model.pack import Pack
from model.place import Place
from model.windows import Windows

EVAL_TOKENS = 8192  # of one validation batch; the metric does not depend on it
EVAL_LOGITS = 2**26  # numbers in the logits of one validation batch, all runs together


class Metrics(NamedTuple):
    """What one run measured at one rung."""

    rung: int
    """1 at the first mark."""
    tokens: int
    """Trained on so far."""
    updates: int
    val_loss: float
    """Mean nats per target token over the whole validation split; nan where the run diverged."""
    val_bpb: float
    """Bits to code the validation text, per UTF-8 byte of it."""
    val_perplexity: float
    val_accuracy: float
    """Fraction of validation tokens predicted right."""
    train_loss: float
    """Mean nats per token since the last rung."""
    lr: float
    """Learning rate of the last update."""
    grad_norm: float
    """Mean over the updates since the last rung, before clipping."""
    clipped: float
    """Fraction of the updates since the last rung that were clipped."""
    tokens_per_second: float
    """Of this run, since the last rung, validation left out."""
    seconds: float
    """Spent on this run so far, validation included."""


class Trainer:
    """Iterate to train: each item is (rung, {place: Metrics}).

    A place is a position in `configs`. Between two items a run may be stopped and another started in its place.
    The rung of an item is that of the run that is furthest; each run's own is in its metrics.
    """

    def __init__(self, configs: Sequence[TrainConfig], prepared: Prepared | None = None) -> None:
        """Build K runs.

        prepared: the data of these configs, if it is at hand.

        Raises:
            ValueError: the configs do not share a pack_key().
            ConfigError: this machine or this text cannot do what the configs ask.
        """
        self.shared = resolve(configs[0])
        self.prepared = prepared or prepare(self.shared.data, self.shared.tokenizer)
        self.device = torch.device(self.shared.run.device)
        layout, context = self.shared.data.layout, self.shared.model.context
        self.validation = Windows(self.prepared.splits["val"], layout, context)
        self.pack = Pack(self.shared, self.prepared.vocab_size, len(configs), self.device)
        # Sums of many losses want double precision, which Apple's GPUs do not have.
        self.precise = torch.float32 if self.device.type == "mps" else torch.float64
        self.sums = torch.zeros(len(configs), dtype=self.precise, device=self.device)  # nats since the last rung
        self.norms = torch.zeros(2, len(configs), device=self.device)  # gradient norms, clipped updates
        self.places: dict[int, Place] = {}
        for place, config in enumerate(configs):
            self.start(place, config)

    def start(self, place: int, config: TrainConfig) -> None:
        """Put a new run in a place.

        Raises:
            ValueError: the config does not share the pack's pack_key().
        """
        if resolve(config).pack_key() != self.shared.pack_key():
            raise ValueError("runs of one pack must have equal pack_key(); group them first")
        self.pack.fill(place, config)
        self.places[place] = Place(config, self.prepared.splits["train"])
        self._forget(place)

    def stop(self, place: int) -> None:
        """End a run; iteration ends when none is left."""
        del self.places[place]

    def save(self, place: int, folder: Path) -> None:
        """Write a run to `folder`/state.safetensors, whole or not at all.

        Raises:
            ValueError: the run is not at a rung of its own, so that half an update would be lost.
        """
        run = self.places[place]
        if run.micro_step != run.began:
            raise ValueError("a run can be saved only at a rung of its own")
        progress = {"scale": self.pack.scales[place], "clean": self.pack.clean[place], **run.progress()}
        checkpoint.save(folder, run.config, self.prepared.hash, self.pack.tensors(place), progress)

    def resume(self, place: int, folder: Path) -> int:
        """Set a place to where `folder` left the run of the same config; return the rung it was left at.

        Raises:
            checkpoint.CheckpointError: it cannot be read, or holds another run.
        """
        run = self.places[place]
        tensors, progress = checkpoint.load(folder, run.config, self.prepared.hash)
        self.pack.load(place, tensors)
        self.pack.scales[place], self.pack.clean[place] = float(progress["scale"]), int(progress["clean"])
        run.restore(progress)
        self._forget(place)
        return run.rung

    def __iter__(self) -> Iterator[tuple[int, dict[int, Metrics]]]:
        while self._stop_what_is_over():
            began = time.perf_counter()
            finite = self._train(min(run.to_mark() for run in self.places.values()))
            trained = time.perf_counter()
            at_mark = [place for place, run in self.places.items() if run.to_mark() == 0 or not finite[place]]
            scores = self._validate() if any(finite[place] for place in at_mark) else None
            for place, run in self.places.items():
                run.seconds += time.perf_counter() - began
                run.training += trained - began
                run.diverged = not finite[place]
            metrics = {place: self._metrics(place, finite[place], scores) for place in sorted(at_mark)}
            for place in at_mark:
                self._forget(place)
            yield max(m.rung for m in metrics.values()), metrics

    def _stop_what_is_over(self) -> bool:
        """Stop the runs that reached their end or diverged; return whether any is left."""
        for place in [place for place, run in self.places.items() if run.over()]:
            self.stop(place)
        return bool(self.places)

    def _train(self, micro_steps: int) -> list[bool]:
        """Train all places for some micro-steps, or until no loss is finite; return whose losses all were."""
        finite = torch.ones(self.pack.size, dtype=torch.bool, device=self.device)
        live = list(self.places)
        for step in range(micro_steps):
            nats = self.pack.train_on(*self._batch(), *self._keys_and_shares())
            self.sums += nats
            finite &= nats.isfinite()
            for run in self.places.values():
                run.advance()
            self._update()
            # A look at the losses makes a GPU wait, hence not at every micro-step there.
            if (self.device.type == "cpu" or step % 64 == 63) and not bool(finite[live].any()):
                break
        return finite.tolist()

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Return the next inputs and targets of each place, (K, B, T); an empty place has no targets."""
        shape = (self.pack.size, self.shared.run.batch_size, self.shared.model.context)
        x, y = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        for place, run in self.places.items():
            x[place], y[place] = run.batch()
        return torch.from_numpy(x).to(self.device), torch.from_numpy(y).to(self.device)

    def _keys_and_shares(self) -> tuple[list[int], list[float]]:
        runs = [self.places.get(place) for place in range(self.pack.size)]
        return [r.dropout_key() if r else 0 for r in runs], [1 / r.update_targets() if r else 0.0 for r in runs]

    def _update(self) -> None:
        """Take an optimizer step wherever the last micro-step of an update was just done."""
        # Sorted: a place that was refilled comes last in the dictionary, but its row stays where it is.
        due = [place for place, run in sorted(self.places.items()) if run.completes_update()]
        if self.shared.run.precision == "fp16":
            due = self.pack.unscale(due)
        if not due:
            return
        coefficients = [self.places[place].coefficients() for place in due]
        limits = [self.places[place].config.clip.limit() for place in due]
        if len(due) == self.pack.size:
            self.norms += self.pack.update(due, coefficients, limits)
        else:
            self.norms[:, due] += self.pack.update(due, coefficients, limits)

    def _validate(self) -> tuple[list[float], list[float]]:
        """Score the whole validation split, every target once; return nats and hits of each place."""
        context = self.shared.model.context
        tokens = min(EVAL_TOKENS, EVAL_LOGITS // (self.prepared.vocab_size * self.pack.size))
        rows = max(1, tokens // context)
        totals = torch.zeros(2, self.pack.size, dtype=self.precise, device=self.device)
        for first in range(0, len(self.validation), rows):
            x, y = self.validation.gather(np.arange(first, min(first + rows, len(self.validation))))
            # All batches of one shape, for torch.compile; what is added has no targets.
            missing = ((0, rows - len(x)), (0, 0))
            inputs = torch.from_numpy(np.pad(x, missing)).to(self.device)
            targets = torch.from_numpy(np.pad(y, missing, constant_values=-1)).to(self.device)
            totals += torch.stack([total.to(self.precise) for total in self.pack.evaluate(inputs, targets)])
        nats, hits = totals.tolist()
        return nats, hits

    def _metrics(self, place: int, finite: bool, scores: tuple[list[float], list[float]] | None) -> Metrics:
        run, split = self.places[place], self.prepared.splits["val"]
        nats = scores[0][place] if scores and finite else math.nan
        hits = scores[1][place] if scores and finite else math.nan
        loss = nats / split.n_targets
        updates = max(1, run.updates_since_rung())
        norm, clipped = (self.norms[:, place] / updates).tolist()
        return Metrics(
            rung=run.rung_reached(),
            tokens=run.tokens(),
            updates=run.updates(),
            val_loss=loss,
            val_bpb=bits_per_byte(loss, split),
            val_perplexity=math.exp(min(loss, 700.0)),
            val_accuracy=hits / split.n_targets,
            train_loss=float(self.sums[place]) / max(1, run.targets),
            lr=run.lr(),
            grad_norm=norm,
            clipped=clipped,
            tokens_per_second=run.tokens_since_rung() / max(run.training, 1e-9),
            seconds=run.seconds,
        )

    def _forget(self, place: int) -> None:
        """Start the sums of a new rung."""
        self.sums[place], self.norms[:, place] = 0, 0
        self.places[place].begin_rung()

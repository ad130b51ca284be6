"""The training loop: an iterator over rungs, for one run or for K of equal shape side by side."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import TrainConfig
from model.data.prepare import PreparedData, bits_per_byte, prepare
from model.errors import ConfigError
from model.train import checkpoint
from model.train.device import resolve
from model.train.evaluate import Evaluator, Scores
from model.train.metrics import Metrics, perplexity
from model.train.pack import Pack
from model.train.run_state import RunState
from model.train.step import PackOptimizer


class Trainer:
    """Iterate to train: each item is (rung, {lane: Metrics}).

    A lane is a position in `configs`. Between two items a run may be stopped and another started in its lane.
    The rung of an item is that of the run that is furthest; each run's own is in its metrics.
    """

    def __init__(self, configs: Sequence[TrainConfig], prepared: PreparedData | None = None) -> None:
        """Build K runs.

        prepared: the data of these configs, if it is at hand.

        Raises:
            ValueError: the configs do not share a pack_key().
            ConfigError: this machine or this text cannot do what the configs ask.
        """
        self.shared = resolve(configs[0])
        self.prepared = prepared or prepare(self.shared.data, self.shared.tokenizer)
        self.device = torch.device(self.shared.run.device)
        self.pack = Pack(self.shared, self.prepared.vocab_size, len(configs), self.device)
        self.validation = Evaluator(self.shared, self.prepared, self.pack)
        self.testing = Evaluator(self.shared, self.prepared, self.pack, "test") if self.shared.run.test else None
        # nats since the last rung
        self.sums = torch.zeros(len(configs), dtype=self.validation.precise, device=self.device)
        self.updates = PackOptimizer(self.pack)
        self.runs: dict[int, RunState] = {}
        for lane, config in enumerate(configs):
            self.start(lane, config)

    def start(self, lane: int, config: TrainConfig) -> None:
        """Put a new run in a lane.

        Raises:
            ValueError: the config does not share the pack's pack_key().
            ConfigError: this text cannot do what the config asks.
        """
        if resolve(config).pack_key() != self.shared.pack_key():
            raise ValueError("runs of one pack must have equal pack_key(); group them first")
        if config.regularization.mask_tokens and self.prepared.vocab_size < 3:
            raise ConfigError("regularization.mask_tokens: needs another token to take, the vocabulary has but one")
        self.pack.fill(lane, config)
        self.runs[lane] = RunState(config, self.prepared.splits["train"])
        self._begin_rung(lane)

    def stop(self, lane: int) -> None:
        """End a run; iteration ends when none is left."""
        del self.runs[lane]

    def save(self, lane: int, folder: Path) -> None:
        """Write a run to `folder`/state.safetensors, whole or not at all.

        Raises:
            ValueError: the run is not at a rung of its own, so that half an update would be lost.
        """
        run = self.runs[lane]
        if run.micro_step != run.began:
            raise ValueError("a run can be saved only at a rung of its own")
        state = {"scale": self.pack.scales[lane], "clean": self.pack.clean[lane], **run.state()}
        checkpoint.save(folder, run.config, self.prepared.hash, self.pack.weights.tensors(lane), state)

    def resume(self, lane: int, folder: Path) -> int:
        """Set a lane to where `folder` left the run of the same config; return the rung it was left at.

        Raises:
            checkpoint.CheckpointError: it cannot be read, or holds another run.
        """
        run = self.runs[lane]
        tensors, state = checkpoint.load(folder, run.config, self.prepared.hash)
        self.pack.weights.load(lane, tensors)
        self.pack.scales[lane], self.pack.clean[lane] = float(state["scale"]), int(state["clean"])
        run.restore(state)
        self._begin_rung(lane)
        return run.rung

    def __iter__(self) -> Iterator[tuple[int, dict[int, Metrics]]]:
        while self._stop_what_is_over():
            began = time.perf_counter()
            self._train(min(run.to_mark() for run in self.runs.values()))
            trained = time.perf_counter()
            finite = self.updates.finite.tolist()
            at_mark = sorted(lane for lane, run in self.runs.items() if run.to_mark() == 0 or not finite[lane])
            scores = averaged = None
            if any(finite[lane] for lane in at_mark):
                scores, averaged = self._scores(at_mark)
                finite = self.updates.finite.tolist()
            for lane, run in self.runs.items():
                run.seconds += time.perf_counter() - began
                run.training += trained - began
                run.diverged = not finite[lane]
            metrics = {lane: self._metrics(lane, scores, averaged) for lane in at_mark}
            metrics |= self._tested(metrics)
            for lane in at_mark:
                self._begin_rung(lane)
            yield max(m.rung for m in metrics.values()), metrics

    def _stop_what_is_over(self) -> bool:
        """Stop the runs that reached their end or diverged; return whether any is left."""
        for lane in [lane for lane, run in self.runs.items() if run.over()]:
            self.stop(lane)
        return bool(self.runs)

    def _train(self, micro_steps: int) -> None:
        """Train all lanes for some micro-steps, or until every run has diverged."""
        self.updates.finite.fill_(True)
        live = list(self.runs)
        for step in range(micro_steps):
            keys, shares, balances = self._keys_and_shares()
            nats = self.pack.train_on(*self._batch(), keys, shares, balances)
            self.sums += self.updates.see(nats)
            counted = nats.isfinite().tolist() if self.updates.watched else [True] * self.pack.size
            for lane in live:
                self.runs[lane].advance(counted[lane])
            self.updates.take(self.runs, live)
            # A look at who has diverged makes a GPU wait, hence not at every micro-step there.
            if self.device.type == "cpu" or step % 64 == 63:
                finite = self.updates.finite.tolist()
                live = [lane for lane in live if finite[lane]]
                if not live:
                    break

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Return the next inputs and targets of each lane, (K, B, T); an empty lane has no targets."""
        shape = (self.pack.size, self.shared.run.batch_size, self.shared.model.context)
        x, y = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        for lane, run in self.runs.items():
            x[lane], y[lane] = run.batch()
        return torch.from_numpy(x).to(self.device), torch.from_numpy(y).to(self.device)

    def _keys_and_shares(self) -> tuple[list[int], list[float], list[float]]:
        """Return the key of each lane, the share of a token in its loss, and that of a micro-step."""
        runs = [self.runs.get(lane) for lane in range(self.pack.size)]
        shares = [run.shares() if run else (0.0, 0.0) for run in runs]
        return [run.key() if run else 0 for run in runs], [s for s, _ in shares], [s for _, s in shares]

    def _scores(self, at_mark: Sequence[int]) -> tuple[Scores, Scores | None]:
        """Score the weights, and their averages where there are any; who has no score is ended or goes back."""
        scores = self.validation.scores()
        if self.updates.mend(self.runs, scores[0], at_mark):
            scores = self.validation.scores()
        if self.shared.regularization.ema is None:
            return scores, None
        with self.pack.weights.averaged():
            return scores, self.validation.scores()

    def _metrics(self, lane: int, scores: Scores | None, averaged: Scores | None) -> Metrics:
        run, split = self.runs[lane], self.prepared.splits["val"]
        scored = scores is not None and not run.diverged
        loss = scores[0][lane] / split.n_targets if scores and scored else math.nan
        smooth = averaged[0][lane] / split.n_targets if averaged and scored else math.nan
        kept = self.shared.regularization.ema is not None
        norm, clipped = (self.updates.measured[:, lane] / max(1, run.steps_since_rung())).tolist()
        grad_norms, ratios = self.pack.weights.by_group(lane)
        return Metrics(
            rung=run.rung_reached(),
            tokens=run.tokens(),
            updates=run.updates(),
            val_loss=loss,
            val_bpb=bits_per_byte(loss, split),
            val_perplexity=perplexity(loss),
            val_accuracy=scores[1][lane] / split.n_targets if scores and scored else math.nan,
            ema_val_loss=smooth if kept else None,
            ema_val_bpb=bits_per_byte(smooth, split) if kept else None,
            train_loss=float(self.sums[lane]) / run.targets if run.targets else math.nan,
            lr=run.lr(),
            grad_norm=norm,
            clipped=clipped,
            grad_norms=grad_norms,
            update_ratios=ratios,
            recoveries=run.health.recoveries(),
            tokens_per_second=run.tokens_since_rung() / max(run.training, 1e-9),
            seconds=run.seconds,
            **self._diagnostics(lane, scored),
        )

    def _tested(self, metrics: dict[int, Metrics]) -> dict[int, Metrics]:
        """Return the metrics of the runs that are at their end, with those of the test split."""
        over = [p for p in metrics if self.runs[p].over() and not self.runs[p].diverged]
        if self.testing is None or not over:
            return {}
        split, found = self.testing.split, {p: metrics[p] for p in over}
        for p, nats in zip(over, self._nats(self.testing, over), strict=True):
            loss = nats / split.n_targets
            found[p] = found[p]._replace(test_loss=loss, test_bpb=bits_per_byte(loss, split))
        if self.shared.regularization.ema is not None:
            with self.pack.weights.averaged():
                averaged = self._nats(self.testing, over)
            for p, nats in zip(over, averaged, strict=True):
                loss = nats / split.n_targets
                found[p] = found[p]._replace(ema_test_loss=loss, ema_test_bpb=bits_per_byte(loss, split))
        return found

    def _nats(self, validation: Evaluator, lanes: Sequence[int]) -> list[float]:
        nats, _ = validation.scores()
        return [nats[p] for p in lanes]

    def _diagnostics(self, lane: int, scored: bool) -> dict[str, Any]:
        """Return what was asked for of attention, experts and the residual stream."""
        if not (scored and self.shared.run.diagnostics):
            return {}
        diagnostics = self.validation.diagnostics(lane)
        return {key: [value.tolist() for value in values] for key, values in diagnostics.items() if values}

    def _begin_rung(self, lane: int) -> None:
        """Start the sums of a new rung."""
        self.sums[lane] = 0
        self.runs[lane].begin_rung()
        self.updates.begin_rung(lane)

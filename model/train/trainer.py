"""The training loop: an iterator over rungs, for one run or for K runs of equal shape side by side (a pack)."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.config import TrainConfig
from model.data.prepare import prepare
from model.data.prepared import PreparedData, bits_per_byte
from model.errors import ConfigError
from model.train import checkpoint
from model.train.device import resolve
from model.train.evaluate import Evaluator, Scores
from model.train.metrics import Metrics, perplexity
from model.train.pack import Pack
from model.train.probe import cool_down_branch, probe_metrics, unchanged
from model.train.resident import resident_split
from model.train.run_state import RunState
from model.train.step import PackOptimizer
from model.train.tables import BatchTable, build_batches, table_size


class Trainer:
    """Train K runs; iterating yields (rung, {lane: Metrics}) whenever a run reaches a rung.

    A rung is a point of training, counted in tokens, at which a run is evaluated on the validation split. A lane is a
    run's position in the pack: its index in `configs`. Between two items, a run may be stopped and another run started
    in its lane. The rung of an item is that of the run that is furthest. The metrics hold the rung of each run.
    """

    def __init__(self, configs: Sequence[TrainConfig], prepared: PreparedData | None = None) -> None:
        """Build K runs.

        prepared: the prepared data of these configurations, None to prepare or open it here.

        Raises:
            ValueError: the configurations do not share a pack_key().
            ConfigError: this machine or this text does not support what a configuration requests.
        """
        self.shared = resolve(configs[0])
        self.prepared = prepared or prepare(self.shared.data, self.shared.tokenizer)
        self.device = torch.device(self.shared.run.device)
        self.resident = resident_split(self.prepared.splits["train"], self.device)
        self.pack = Pack(self.shared, self.prepared.vocab_size, len(configs), self.device)
        self.validation = Evaluator(self.shared, self.prepared, self.pack)
        self.test = Evaluator(self.shared, self.prepared, self.pack, "test") if self.shared.run.test else None
        # Sums of training losses since the last rung, in nats, (K,).
        self.sums = torch.zeros(len(configs), dtype=self.validation.sum_dtype, device=self.device)
        self.optimizer = PackOptimizer(self.pack)
        # Whether to stop a run when it diverges, not at its next rung. Reading a value makes the CPU wait for a GPU.
        self.reads_divergence = self.device.type == "cpu"
        self.runs: dict[int, RunState] = {}  # by lane
        for lane, config in enumerate(configs):
            self.start(lane, config)

    def start(self, lane: int, config: TrainConfig) -> None:
        """Start a new run in a lane.

        Raises:
            ValueError: the configuration does not share the pack_key() of the pack.
            ConfigError: this text does not support what the configuration requests.
        """
        if resolve(config).pack_key() != self.shared.pack_key():
            raise ValueError("runs of one pack must have equal pack_key(); group them first")
        if config.regularization.mask_tokens and self.prepared.vocab_size < 3:
            raise ConfigError(
                "regularization.mask_tokens: needs a vocabulary of at least two tokens besides the end token, "
                f"got {self.prepared.vocab_size - 1}; set it to 0"
            )
        self.pack.initialize(lane, config)
        self.runs[lane] = RunState(config, self.prepared.splits["train"])
        self._begin_rung(lane)

    def stop(self, lane: int) -> None:
        """End a run. Iteration ends when no run is left."""
        del self.runs[lane]

    def save(self, lane: int, folder: Path) -> None:
        """Write a checkpoint of a run to `folder`/state.safetensors. The file is replaced as a whole.

        Raises:
            ValueError: the run is not at a rung, so that the gradients of a partial update would be lost.
            OSError: the file cannot be written.
        """
        run = self.runs[lane]
        if run.micro_step != run.rung_start:
            raise ValueError("a run can be saved only at one of its rungs")
        progress = {"scale": self.pack.loss_scales[lane], "clean": self.pack.clean_updates[lane], **run.state_dict()}
        checkpoint.save(folder, run.config, self.prepared.hash, self.pack.params.tensors(lane), progress)

    def resume(self, lane: int, folder: Path) -> int:
        """Resume the run of a lane from the checkpoint in `folder`; return the rung of the checkpoint.

        Raises:
            checkpoint.CheckpointError: the checkpoint cannot be read, or holds a run of another configuration.
        """
        run = self.runs[lane]
        tensors, progress = checkpoint.load(folder, run.config, self.prepared.hash)
        try:
            tensors = self.pack.params.checked(lane, tensors)
            scale, clean = float(progress["scale"]), int(progress["clean"])
            run.load_state_dict(progress)
        except (LookupError, TypeError, ValueError) as error:
            reason = f"its progress has no {error}" if isinstance(error, KeyError) else str(error)
            raise checkpoint.CheckpointError(f"{folder / checkpoint.FILE}: damaged: {reason}") from error
        self.pack.params.load(lane, tensors)
        self.pack.loss_scales[lane], self.pack.clean_updates[lane] = scale, clean
        self._begin_rung(lane)
        return run.rung

    def probe(self, shares: Mapping[int, float]) -> dict[int, dict[str, float]]:
        """Train copies of runs at a rung while their rates fall, and return their metrics by lane. No run changes.

        shares: by lane, the fraction of its tokens in which the rate falls linearly to its value at the end of the run.

        Raises:
            ValueError: a run is not at a rung, or the share is longer than the rest of the run.
        """
        branches = {lane: cool_down_branch(self.runs[lane], share) for lane, share in shares.items()}
        runs, test, start = self.runs, self.test, time.perf_counter()
        with unchanged(self.pack, self.optimizer, self.sums):
            try:
                self.runs, self.test = branches, None
                for lane in self.runs:
                    self._begin_rung(lane)
                metrics = {lane: own for _, reports in self for lane, own in reports.items()}
            finally:
                self.runs, self.test = runs, test
        for run in runs.values():
            run.seconds += time.perf_counter() - start
        return {lane: probe_metrics(runs[lane], own) for lane, own in metrics.items()}

    def __iter__(self) -> Iterator[tuple[int, dict[int, Metrics]]]:
        while self._stop_finished_runs():
            start = time.perf_counter()
            self._train(min(run.micro_steps_to_mark() for run in self.runs.values()))
            finite = self.optimizer.finite.tolist()  # waits for a GPU, which still computes what was launched
            trained = time.perf_counter()
            at_mark = sorted(
                lane for lane, run in self.runs.items() if not (finite[lane] and run.micro_steps_to_mark())
            )
            scores = ema_scores = None
            if any(finite[lane] for lane in at_mark):
                scores, ema_scores = self._scores(at_mark)
                finite = self.optimizer.finite.tolist()
            for lane, run in self.runs.items():
                run.seconds += time.perf_counter() - start
                run.training_seconds += trained - start
                run.diverged = not finite[lane]
            metrics = {lane: self._metrics(lane, scores, ema_scores) for lane in at_mark}
            metrics |= self._with_test_scores(metrics)
            for lane in at_mark:
                self._begin_rung(lane)
            yield max(m.rung for m in metrics.values()), metrics

    def _stop_finished_runs(self) -> bool:
        """Stop the runs that reached their last mark or diverged; return whether any run is left."""
        for lane in [lane for lane, run in self.runs.items() if run.is_finished()]:
            self.stop(lane)
        return bool(self.runs)

    def _train(self, micro_steps: int) -> None:
        """Train all runs for some micro-steps, or until every run has diverged."""
        self.optimizer.load(self.runs)
        live, shape = list(self.runs), (self.pack.size, self.shared.run.batch_size, self.shared.model.context)
        while micro_steps > 0 and live:
            n = table_size(micro_steps, math.prod(shape))
            table = build_batches(self.runs, shape, n, self.device, self.resident)
            self.optimizer.prepare(self.runs, n)
            live = self._train_on(table, live)
            micro_steps -= n
        self.optimizer.store(self.runs)

    def _train_on(self, table: BatchTable, live: list[int]) -> list[int]:
        """Train the live lanes on the batches of a table. Return the lanes that are known to be live afterwards."""
        for x, y, keys, token_weights, micro_step_weights in zip(*table, strict=True):
            nats = self.pack.accumulate_grads(x, y, keys, token_weights, micro_step_weights)
            self.sums += self.optimizer.observe(nats)
            for lane in live:
                self.runs[lane].advance(not self.optimizer.recovers)
            self.optimizer.step(self.runs, live)
            if self.reads_divergence:
                finite = self.optimizer.finite.tolist()
                live = [lane for lane in live if finite[lane]]
                if not live:
                    break
        return live

    def _scores(self, at_mark: Sequence[int]) -> tuple[Scores, Scores | None]:
        """Return validation scores of the weights and, with regularization.ema, of the averaged weights.

        A run whose score is not finite is ended, or rolled back and scored again.
        """
        scores = self.validation.evaluate()
        if self.optimizer.recover_at_rung(self.runs, scores.nats, at_mark):
            scores = self.validation.evaluate()
        return scores, self.validation.evaluate_averaged()

    def _metrics(self, lane: int, scores: Scores | None, ema_scores: Scores | None) -> Metrics:
        run, split = self.runs[lane], self.prepared.splits["val"]
        scored = scores is not None and not run.diverged
        loss, ema_loss = (of.nats[lane] / split.n_targets if of and scored else math.nan for of in (scores, ema_scores))
        has_ema = self.shared.regularization.has_average()
        grad_norm, clipped = (self.optimizer.measured[:, lane] / max(1, run.steps_since_rung())).tolist()
        grad_norms, ratios = self.pack.params.norms.read(lane)
        return Metrics(
            rung=run.rung_reached(),
            tokens=run.n_tokens(),
            updates=run.n_updates(),
            val_loss=loss,
            val_bpb=bits_per_byte(loss, split),
            val_perplexity=perplexity(loss),
            val_accuracy=scores.n_correct[lane] / split.n_targets if scores and scored else math.nan,
            ema_val_loss=ema_loss if has_ema else None,
            ema_val_bpb=bits_per_byte(ema_loss, split) if has_ema else None,
            train_loss=float(self.sums[lane]) / run.n_targets if run.n_targets else math.nan,
            lr=run.lr(),
            grad_norm=grad_norm,
            clipped=clipped,
            grad_norms=grad_norms,
            update_ratios=ratios,
            recoveries=run.health.recoveries(),
            tokens_per_second=run.tokens_since_rung() / max(run.training_seconds, 1e-9),
            seconds=run.seconds,
            **self._diagnostics(lane, scored),
        )

    def _with_test_scores(self, metrics: dict[int, Metrics]) -> dict[int, Metrics]:
        """Return the metrics of the runs that are at their last rung, with the test scores that run.test requests."""
        last = [lane for lane in metrics if self.runs[lane].is_finished() and not self.runs[lane].diverged]
        if self.test is None or not last:
            return {}
        scores = self.test.test_scores()
        return {lane: metrics[lane]._replace(**{name: nats[lane] for name, nats in scores.items()}) for lane in last}

    def _diagnostics(self, lane: int, scored: bool) -> dict[str, Any]:
        """Return the diagnostics that run.diagnostics requests, by the names of the metrics."""
        diagnostics = self.validation.diagnostics(lane) if scored and self.shared.run.diagnostics else {}
        return {name: [tensor.tolist() for tensor in tensors] for name, tensors in diagnostics.items() if tensors}

    def _begin_rung(self, lane: int) -> None:
        """Reset the sums of a lane at the start of a rung."""
        self.sums[lane] = 0
        self.runs[lane].begin_rung()
        self.optimizer.begin_rung(lane)

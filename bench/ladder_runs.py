"""The runs of bench/ladders.py: trained by worker processes, and kept one by one, so that the script can be resumed."""

import json
import math
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

from hpo.runs.datasets import PreparedDatasets
from hpo.runs.trainable import build_runs, pack_key
from hpo.study.spec import DEFAULT_TRAIN
from model.config import TrainConfig
from model.section import updated

PACK = 5  # as many as there are fresh seeds
Values = Mapping[str, Any]


@cache
def _datasets() -> PreparedDatasets:
    """Return the prepared data of this process."""
    return PreparedDatasets()


def train_pack(configs: Sequence[TrainConfig]) -> tuple[list[float], float]:
    """Train runs of equal shape; return the final loss of each, 1000 if it diverged, and CPU seconds per run."""
    began = time.process_time()
    losses = [math.inf] * len(configs)
    for _, reports in build_runs(DEFAULT_TRAIN, configs, **_datasets().training_arguments(configs[0])):
        for lane, metrics in reports.items():
            losses[lane] = float(metrics.val_loss)
    return [x if math.isfinite(x) else 1e3 for x in losses], (time.process_time() - began) / len(configs)


class KeptRuns:
    """The finished runs, one line of a file each, by the fields of their configuration."""

    def __init__(self, file: Path, base: TrainConfig, deadline: float, n_workers: int) -> None:
        self.file, self.base, self.deadline, self.n_workers = file, base, deadline, n_workers
        self.pool = ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"))
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        self.runs = {self._key(tree["values"]): tree for line in lines if (tree := json.loads(line))}

    def config(self, values: Values) -> TrainConfig:
        """Return the configuration of a run."""
        return updated(self.base, dict(values))

    def _key(self, values: Values) -> str:
        # Six digits, because the last bits of a fit differ between processors.
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        return json.dumps(rounded, sort_keys=True)

    def loss(self, values: Values) -> float:
        """Return the final loss of a finished run."""
        return float(self.runs[self._key(values)]["loss"])

    def seconds(self, runs: Sequence[Values]) -> float:
        """Return the CPU seconds that finished runs took."""
        return float(sum(self.runs[self._key(values)]["seconds"] for values in runs))

    def train(self, runs: Sequence[Values]) -> bool:
        """Train the runs that are missing; return False if the time is over."""
        packs = self._packs(runs)
        pending: dict[Future[tuple[list[float], float]], list[Values]] = {}
        while pending or (packs and time.monotonic() < self.deadline):
            while packs and len(pending) < self.n_workers and time.monotonic() < self.deadline:
                pack = packs.pop()
                pending[self.pool.submit(train_pack, [self.config(values) for values in pack])] = pack
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                self._keep(pending.pop(future), *future.result())
        return not packs

    def _packs(self, runs: Sequence[Values]) -> list[list[Values]]:
        """Return the runs that are missing, in packs of equal shape."""
        by_shape: dict[Any, list[Values]] = {}
        for key, values in {self._key(values): values for values in runs}.items():
            if key not in self.runs:
                by_shape.setdefault(pack_key(self.config(values)), []).append(values)
        return [own[i : i + PACK] for own in by_shape.values() for i in range(0, len(own), PACK)]

    def _keep(self, pack: Sequence[Values], losses: Sequence[float], seconds: float) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            for values, loss in zip(pack, losses, strict=True):
                tree = {"values": dict(values), "loss": loss, "seconds": round(seconds, 2)}
                file.write(json.dumps(tree) + "\n")
                self.runs[self._key(values)] = tree

"""What `hpo train` does for every kind of training: its folder, its provenance, its signals, its lines."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpo.console import format_number, say
from hpo.errors import Interruption, Problem
from hpo.runs.provenance import describe_machine


def origin(provenance: Mapping[str, Any], data_hash: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the provenance of the run: that of its configuration, and this machine."""
    origin = {**provenance, **describe_machine(), "data_hash": data_hash}
    if overrides:  # the configuration differs from the trial's, so the trial's value does not hold for it
        origin = without_result(origin) | {"set": list(overrides)}
    return origin


def without_result(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance without the result of the trial, which does not hold for another configuration."""
    return {key: value for key, value in provenance.items() if key not in ("value", "state")}


def run_folder(path: Path, out: Path, resume: bool) -> Path:
    """Return a new folder for a run, or with `resume` the folder of the last run.

    Raises:
        Problem: there is no run to resume.
    """
    if resume and (path.parent / "metrics.jsonl").is_file():
        return path.parent  # the file is the configuration of a run
    names = [path.stem, *(f"{path.stem}-{i}" for i in range(2, 10_000))]
    if not resume:
        return next(out / name for name in names if not (out / name).exists())
    taken = [out / name for name in names if (out / name).exists()]
    if not taken:
        raise Problem(f"--resume: needs an earlier run; there is no run of {path} in {out}")
    return max(taken, key=lambda folder: folder.stat().st_mtime)


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM. The second one raises Interruption."""
    signals: list[int] = []

    def stop(number: int, _: Any) -> None:
        if signals:
            raise Interruption
        signals.append(number)
        say("stopping after this rung, with a checkpoint; press Ctrl-C again to stop immediately")

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def rung_line(rung: int, value: float, objective: str, metrics: Mapping[str, Any]) -> str:
    parts = [f"rung {rung}", f"{objective} {format_number(value)}"]
    if "tokens" in metrics:
        parts.insert(1, f"tokens {metrics['tokens']:,}")
    for key in ("val_bpb", "ema_val_loss", "train_loss", "lr", "tokens_per_second"):
        if metrics.get(key) is not None and key != objective:
            parts.append(f"{key} {format_number(metrics[key])}")
    if metrics.get("recoveries"):
        parts.append(f"recoveries {metrics['recoveries']}")
    return "  ".join(parts)

"""hpo train and hpo sample: a configuration trained at full length, and text from what it learnt."""

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.config.files import config_text, path_of, read_config
from hpo.config.importer import model_class, place
from hpo.config.overrides import overridden
from hpo.config.validation import messages
from hpo.console import number, say
from hpo.errors import Problem, WorkFailed
from hpo.runs import checkpoints, trainable
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.provenance import describe_machine
from hpo.runs.resources import available_cores, set_thread_environment, threads_in_use
from hpo.runs.run_dir import append_metrics, read_metrics, truncate_metrics, write_file
from hpo.study.spec import DEFAULT_CONFIG, DEFAULT_TRAIN
from model.errors import ConfigError


def train(path: Path, overrides: Sequence[str], out: Path, resume: bool) -> int:
    """Train a configuration file, or a base by its name; return the exit status.

    Raises:
        Problem: the file is not one, or asks for what is not here.
    """
    path = path_of(path)
    tree, provenance = read_config(path)
    # The last bits of a loss depend on the number of threads; torch, which a module of the user's own may import,
    # reads it when it is imported.
    _settle(path, provenance)
    config = _configuration(path, tree, provenance, overrides)
    corpora = PreparedDatasets()
    _warn_of_other_data(provenance, corpora.data_hash(config), overrides)
    folder = _folder(path, out, resume)
    target = str(provenance.get("train", DEFAULT_TRAIN))
    try:
        runs = trainable.build_runs(target, [config], **corpora.training_arguments(config))
        if resume:
            runs.resume(0, _newest(folder))
        here = {**provenance, **describe_machine(), "data_hash": corpora.data_hash(config)}
        if overrides:  # no longer the configuration that has this value
            here = {key: value for key, value in here.items() if key not in ("value", "state")} | {
                "set": list(overrides)
            }
        write_file(folder / "config.yaml", config_text(config, here))
        return _run(runs, config, folder, str(provenance.get("objective", "val_loss")))
    except ConfigError as error:
        raise Problem(f"{path}: {error}") from None
    except Problem:
        raise
    except Exception as error:  # whatever a function of the user's own does
        if target != DEFAULT_TRAIN:
            raise WorkFailed(f"{target}: {type(error).__name__}: {error}{place(error)}") from None
        if not isinstance(error, ValueError | TypeError | OSError):
            raise
        raise WorkFailed(str(error)) from None


def _settle(path: Path, provenance: Mapping[str, Any]) -> None:
    """Compute with the threads that the trial was computed with, unless the user says otherwise.

    Raises:
        Problem: the file's number of threads is none.
    """
    threads = provenance.get("threads", available_cores())
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise Problem(f"{path}: provenance.threads: must be a whole number of at least 1, got {threads!r}")
    set_thread_environment(threads)
    if "threads" in provenance and threads_in_use() != threads:
        say(f"warning: OMP_NUM_THREADS is {threads_in_use()}, the trial had {threads}: the last bits will differ")


def _run(runs: trainable.Runs, config: BaseModel, folder: Path, objective: str) -> int:
    """Train to the end, a line a rung; after Ctrl-C, to the next rung."""
    log = folder / "metrics.jsonl"
    value = best = math.nan
    with _interrupts() as got:
        for _, reports in runs:
            rung, value, metrics = trainable.read_report(reports[0], objective)
            if math.isnan(best):  # the first rung, or the first since the checkpoint that was resumed
                truncate_metrics(log, rung - 1)
                best = min((row[objective] for row in read_metrics(log)), default=math.inf)
            append_metrics(log, metrics)
            print(_line(rung, value, objective, metrics), flush=True)
            checkpoints.save_checkpoints(runs, 0, config, folder, rung, value < best)
            best = min(best, value)
            if got:
                say(f"stopped; `hpo train {folder / 'config.yaml'} --resume` goes on")
                return 128 + got[0]
    return _conclude(folder, objective, value)


def _conclude(folder: Path, objective: str, value: float) -> int:
    """Say where the run is, and what to do next.

    Raises:
        WorkFailed: it diverged, or reported nothing.
    """
    log = folder / "metrics.jsonl"
    last = list(read_metrics(log))[-1:]
    if not last:
        raise WorkFailed(f"{folder}: the training function ended before its first rung")
    if math.isnan(value):  # resumed at its end, or diverged
        value = math.nan if last[0][objective] is None else last[0][objective]
    if not math.isfinite(value):
        raise WorkFailed(f"the run diverged: {objective} is not finite; a lower optimizer.lr is the first thing to try")
    checkpoints.remove_checkpoints(folder)
    say(f"run: {folder}")
    if (folder / checkpoints.KEPT).is_dir():
        say(f"next:\n  hpo sample {folder} --prompt 'The '")
    return 0


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM; the second stops at once."""
    got: list[int] = []

    def stop(number: int, _: Any) -> None:
        if got:
            raise KeyboardInterrupt
        got.append(number)
        say("stopping: the rung is finished and saved; press Ctrl-C again to stop at once")

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield got
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def _line(rung: int, value: float, objective: str, metrics: Mapping[str, Any]) -> str:
    parts = [f"rung {rung}", f"{objective} {number(value)}"]
    if "tokens" in metrics:
        parts.insert(1, f"tokens {metrics['tokens']:,}")
    for key in ("val_bpb", "ema_val_loss", "train_loss", "lr", "tokens_per_second"):
        if metrics.get(key) is not None and key != objective:
            parts.append(f"{key} {number(metrics[key])}")
    if metrics.get("recoveries"):
        parts.append(f"recoveries {metrics['recoveries']}")
    return "  ".join(parts)


def _configuration(
    path: Path, tree: Mapping[str, Any], provenance: Mapping[str, Any], overrides: Sequence[str]
) -> BaseModel:
    kind = model_class(str(provenance.get("config", DEFAULT_CONFIG)), "provenance.config")
    try:
        config = kind.model_validate(dict(tree))
    except ValidationError as error:
        raise Problem(*(f"{path}: {text}" for text in messages(error, kind))) from None
    return overridden(config, overrides)


def _warn_of_other_data(provenance: Mapping[str, Any], data_hash: str | None, overrides: Sequence[str]) -> None:
    held = provenance.get("data_hash")
    asked = any(override.startswith(("data.", "tokenizer.")) for override in overrides)
    if held and data_hash != held and not asked:
        say(
            f"warning: the data has the hash {data_hash and data_hash[:12]}, the trial's had {held[:12]}: "
            "losses will differ from those of the study"
        )


def _folder(path: Path, out: Path, resume: bool) -> Path:
    """Return the folder of a run: a new one, or that of the run to go on with."""
    if resume and (path.parent / "metrics.jsonl").is_file():
        return path.parent  # the configuration of a run itself
    names = [path.stem, *(f"{path.stem}-{i}" for i in range(2, 10_000))]
    taken = [out / name for name in names if (out / name).exists()]
    if not resume:
        return next(out / name for name in names if not (out / name).exists())
    if not taken:
        raise Problem(f"--resume: there is no run of {path} in {out}")
    return max(taken, key=lambda folder: folder.stat().st_mtime)


def _newest(folder: Path) -> Path:
    """Return the checkpoint to go on from.

    Raises:
        Problem: there is none.
    """
    found = checkpoints.resumable_checkpoints(folder)
    if not found:
        raise Problem(f"--resume: there is no checkpoint in {folder}")
    return found[0]


def sample(run: Path, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int) -> str:
    """Return text that continues a prompt, from the checkpoint of a run.

    Raises:
        Problem: there is no checkpoint, or a value is out of range.
    """
    from model.train.generate import generate

    folder = run / checkpoints.KEPT if (run / checkpoints.KEPT).is_dir() else run
    if not (folder / "state.safetensors").is_file():
        folder = max(folder.glob("rung-*"), default=folder)  # run.keep_checkpoints: all
    try:
        return generate(folder, prompt, tokens, temperature, top_k, seed)
    except ValueError as error:
        raise Problem(str(error)) from None

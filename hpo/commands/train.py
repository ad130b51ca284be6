"""`hpo train`: train one configuration without pruning."""

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.commands.train_command import train_command
from hpo.commands.train_file import FileRequest, configuration_to_train
from hpo.commands.train_output import collected_signals, origin, run_folder, rung_line
from hpo.config.files import config_path, config_text, read_config
from hpo.config.importer import error_location
from hpo.console import command_line, say, show
from hpo.errors import Problem, WorkFailed, raised_error
from hpo.runs import checkpoints, trainable
from hpo.runs.arithmetic import idle_device_note
from hpo.runs.datasets import PreparedDatasets, data_note, rows_text
from hpo.runs.metrics import append_metrics, metric, read_metrics, truncate_metrics
from hpo.runs.resources import available_cores, set_thread_environment, threads_in_use
from hpo.runs.run_dir import write_file
from hpo.search.direction import Direction
from hpo.study.spec import DEFAULT_TRAIN
from hpo.transfer.rule import Rule
from model.errors import ConfigError


def train_config(
    path: Path, overrides: Sequence[str], out: Path, resume: bool, rule: Rule | None = None, storage: str | None = None
) -> int:
    """Train a configuration file, or the base configuration of this name, and return the exit status.

    out: folder in which the folder of the run is created.
    resume: continue the last run of the file from its checkpoint.
    rule: by which the configuration is carried over to another length, batch or size; None for the default.
    storage: URL of the storage in which the rule `fitted` finds the ladder of the search.

    Raises:
        Problem: the file is not a configuration, or its data or device is missing.
        WorkFailed: the run diverged, or its training function failed.
    """
    path = config_path(path)
    tree, provenance = read_config(path)
    # The last bits of a loss depend on the number of threads. Torch reads the number when it is imported, and a module
    # of the user may import torch.
    _set_threads(path, provenance)
    if "command" in provenance:
        if rule not in (None, Rule.copy):
            raise Problem(f"--rule: must be copy with a command of your own, got {rule}")
        return train_command(path, tree, provenance, overrides, run_folder(path, out, resume))
    config, provenance = configuration_to_train(path, tree, provenance, FileRequest(overrides, rule, storage))
    datasets = PreparedDatasets()
    _warn_of_other_data(provenance, datasets.data_hash(config), overrides)
    rows = rows_text(datasets.rows(config))
    for line in filter(None, (rows and f"data: {rows}", data_note(config), idle_device_note(config))):
        say(line)
    folder = run_folder(path, out, resume)
    target = str(provenance.get("train", DEFAULT_TRAIN))
    with _explained_failures(path, target):
        runs = trainable.build_runs(target, [config], **datasets.training_arguments(config))
        if resume:
            _resume(runs, folder)
        write_file(
            folder / "config.yaml", config_text(config, origin(provenance, datasets.data_hash(config), overrides))
        )
        maximize = provenance.get("direction") == Direction.MAXIMIZE
        return _train_to_end(runs, config, folder, str(provenance.get("objective", "val_loss")), maximize)


@contextmanager
def _explained_failures(path: Path, target: str) -> Iterator[None]:
    """Raise what the configuration or the training function raises as an error with one clear message."""
    try:
        yield
    except ConfigError as error:
        raise Problem(f"{path}: {error}") from None
    except Problem:
        raise
    except Exception as failure:  # a training function of the user may raise anything
        explained = _explained(failure, target)
        if explained is failure:
            raise
        raise explained from None


def _explained(failure: Exception, target: str) -> BaseException:
    """Return the exception to raise for a failure of a training function: the failure itself if it is our own fault."""
    cause = raised_error(failure)
    if isinstance(cause, KeyboardInterrupt):  # Ctrl-C before the first rung
        return cause
    if target != DEFAULT_TRAIN:
        return WorkFailed(f"{target}: {type(cause).__name__}: {cause}{error_location(cause)}")
    return WorkFailed(str(cause)) if isinstance(cause, ValueError | TypeError | OSError) else failure


def _set_threads(path: Path, provenance: Mapping[str, Any]) -> None:
    """Use as many threads as the trial did, unless OMP_NUM_THREADS is set.

    Raises:
        Problem: the number of threads in the file is not valid.
    """
    threads = provenance.get("threads", available_cores())
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise Problem(f"{path}: provenance.threads: must be a whole number of at least 1, got {threads!r}")
    set_thread_environment(threads)
    if "threads" in provenance and threads_in_use() != threads:
        say(f"warning: OMP_NUM_THREADS is {threads_in_use()}, but the trial used {threads}: the last bits will differ")


def _train_to_end(runs: trainable.Runs, config: BaseModel, folder: Path, objective: str, maximize: bool) -> int:
    """Train to the end and print one line per rung. After Ctrl-C or SIGTERM, stop at the next rung."""
    log, loss = folder / "metrics.jsonl", Direction.MAXIMIZE.loss if maximize else Direction.MINIMIZE.loss
    value = best = math.nan
    with collected_signals() as signals:
        for _, reports in runs:
            rung, value, metrics = trainable.parse_report(reports[0], objective)
            if math.isnan(best):  # the first rung of this process
                truncate_metrics(log, rung - 1)
                known = [metric(row, objective) for row in read_metrics(log)]
                best = min((loss(v) for v in known if v is not None), default=math.inf)
            append_metrics(log, metrics)
            try:
                show(rung_line(rung, value, objective, metrics))
            except BrokenPipeError:  # as of `| head`
                signals.append(signal.SIGPIPE)
            except (OSError, ValueError):  # a full disk, or training code has closed the stream: the run continues
                pass
            checkpoints.save_checkpoints(runs, 0, config, folder, rung, loss(value) < best)
            best = min(best, loss(value))
            if signals:
                command = command_line("hpo", "train", folder / "config.yaml", "--resume")
                saved = checkpoints.resumable_checkpoints(folder)
                say(f"stopped; `{command}` resumes the run" if saved else "stopped; the run has no checkpoint")
                return 128 + signals[0]
    return _conclude(folder, objective, value)


def _conclude(folder: Path, objective: str, value: float) -> int:
    """Print the folder of the run and the next command.

    Raises:
        WorkFailed: the run diverged, or reported no rung.
    """
    log = folder / "metrics.jsonl"
    last = list(read_metrics(log))[-1:]
    if not last:
        raise WorkFailed(f"{folder}: the training function ended before its first rung")
    if math.isnan(value):  # the run was resumed at its end, or it diverged
        value = math.nan if (known := metric(last[0], objective)) is None else known
    if not math.isfinite(value):
        raise WorkFailed(f"the run diverged: {objective} is not finite; try a lower optimizer.lr first")
    checkpoints.remove_checkpoints(folder)
    say(f"run: {folder}")
    if (folder / checkpoints.KEPT).is_dir():
        say(f"next:\n  {command_line('hpo', 'sample', folder, '--prompt', 'The ')}")
    return 0


def _warn_of_other_data(provenance: Mapping[str, Any], data_hash: str | None, overrides: Sequence[str]) -> None:
    trial_hash = provenance.get("data_hash")
    data_is_set = any(override.startswith(("data.", "tokenizer.")) for override in overrides)
    if trial_hash and data_hash != trial_hash and not data_is_set:
        say(
            f"warning: the data has the hash {data_hash and data_hash[:12]}, but the trial's data had "
            f"{trial_hash[:12]}: losses will differ from the losses of the study"
        )


def _resume(runs: trainable.Runs, folder: Path) -> None:
    """Resume a run from its newest checkpoint that can be used, with a warning for each newer one.

    Raises:
        Problem: the folder has no checkpoint that can be used.
    """
    candidates = checkpoints.resumable_checkpoints(folder)
    if not candidates:
        raise Problem(f"--resume: needs a checkpoint; there is no checkpoint in {folder}")
    reasons = []
    for candidate in candidates:
        try:
            runs.resume(0, candidate)
        except (ValueError, OSError) as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            say(f"warning: {reason}; the run resumes from {candidate}")
        return
    raise Problem(f"--resume: {reasons[0]}; without --resume, the run starts again in a new folder")

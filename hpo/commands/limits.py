"""`hpo limits`: find the largest batch size that fits in memory, by estimates and by trial runs."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.commands.batch_search import BATCH, BatchSearch
from hpo.config.files import config_path, read_config
from hpo.config.overrides import apply_overrides
from hpo.config.validation import error_messages
from hpo.console import Format, format_number, print_records, say
from hpo.errors import NothingFeasible, Problem, WorkFailed, error_summary
from hpo.runs.datasets import prepare_data
from hpo.runs.resources import available_cores, set_thread_environment
from hpo.study.spec import DEFAULT_CONFIG, DEFAULT_TRAIN
from model.config import TrainConfig
from model.data.prepared import PreparedData
from model.section import updated

TRIAL_RUN_S = 900.0
MAX_BATCH_TOKENS = 2**19  # the batch of the GPT-3 model of 125 million parameters (Brown et al. 2020, table 2.1)
FREE_SHARE = 0.9  # of the free memory: other programs and the allocator's fragments need the rest


def print_limits(path: Path, overrides: Sequence[str], memory: float | None, runs: int, format: Format) -> None:
    """Print the memory of several batch sizes, and the largest batch size that fits.

    memory: in GB for the whole pack, None for most of the free memory. runs: trials that train together, as a pack.

    Raises:
        Problem: the file is not a configuration of hpo's own trainer, or its device or data is missing.
        NothingFeasible: not even a batch of one sequence fits.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # also ends a trial run in progress
    if memory is not None and not memory > 0:
        raise Problem(f"--memory: must be above 0, in GB, got {memory:g}")
    config = read_train_config(path, overrides)
    set_thread_environment(available_cores())  # before torch is loaded
    data = prepare_data(config)
    cap, reason = largest_useful_batch(config, data)
    device, room = _device_memory(config, memory)
    search = BatchSearch(config, data.vocab_size, runs, device, room, cap)
    say(f"{room / 1e9:.2f} GB on {device}; {BATCH} up to {cap:,}, {reason}")
    while (batch := search.next()) is not None:
        say(f"{BATCH}={batch}: about {search.needs(batch) / 1e9:.2f} GB by estimate; testing")
        search.add(batch, result := trial_run(search.with_batch(batch), runs, room))
        say(f"{BATCH}={batch}: {_result_text(result, room)}")
    print_records(search.table(), format)
    _conclude(search, reason)


def read_train_config(path: Path, overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration of a file, or the base configuration of this name, with overrides.

    Raises:
        Problem: there is no such configuration, it uses another trainer, or the overrides set the batch size.
    """
    path = config_path(path)
    tree, provenance = read_config(path)
    for key, default in ("train", DEFAULT_TRAIN), ("config", DEFAULT_CONFIG):
        if (value := provenance.get(key, default)) != default:
            raise Problem(f"{path}: provenance.{key}: must be {default}, whose memory can be estimated, got {value}")
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise Problem(*(f"{path}: {text}" for text in error_messages(error, TrainConfig))) from None
    for override in overrides:
        if override.split("=")[0].strip() == BATCH:
            raise Problem(f"--set {override}: must not set {BATCH}, which this command searches; omit it")
    return apply_overrides(config, overrides)


def largest_useful_batch(config: TrainConfig, data: PreparedData) -> tuple[int, str]:
    """Return the largest batch size that makes sense, and the reason why a larger one does not."""
    from model.data.batches import TrainingBatches

    run, context = config.run, config.model.context
    order = TrainingBatches(data.splits["train"], config.data, context, run.seed)
    rung_tokens = config.rung_tokens() if run.align else run.tokens / run.rungs
    bounds = [
        (int(rung_tokens) // (run.grad_accum * context), f"where a rung of run.tokens={run.tokens} is one update"),
        (order.n_rows(0) // run.grad_accum, "where an update is the whole training text"),
        (MAX_BATCH_TOKENS // context, f"{MAX_BATCH_TOKENS:,} tokens in a batch"),
    ]
    cap, reason = min(bounds)
    return max(1, cap), reason


def trial_run(config: TrainConfig, runs: int, room: int) -> dict[str, Any]:
    """Train two updates in a separate process that may use `room` bytes, and return its measurements.

    The result has peak_bytes, tokens_per_second and loss, or out_of_memory with a reason.

    Raises:
        WorkFailed: the process failed for another reason than memory.
    """
    # Gradient accumulation needs more time, but not more memory.
    single = updated(config, {"run.grad_accum": 1})
    request = {"config": single.model_dump(mode="json"), "updates": 2, "runs": runs, "limit": room}
    command = [sys.executable, "-m", "model.memory.dry_run"]
    name = f"{BATCH}={config.run.batch_size}"
    try:
        process = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=TRIAL_RUN_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise WorkFailed(f"{name}: two updates took more than {TRIAL_RUN_S:.0f} s; use a smaller --memory") from None
    if process.returncode < 0:  # the system killed the process, because memory ran out
        return {"out_of_memory": f"the system ended it with {signal.Signals(-process.returncode).name}"}
    if process.returncode:
        raise WorkFailed(f"{name}: {error_summary(process.stderr) or 'the process gave no reason'}")
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    if "error" in result:
        raise WorkFailed(f"{name}: {result['error']}")
    return result


def _device_memory(config: TrainConfig, memory: float | None) -> tuple[str, int]:
    """Return the device, and the bytes of its memory that the runs may use.

    Raises:
        Problem: the machine has no such device, or the device has less memory.
    """
    from model.errors import ConfigError
    from model.memory.capacity import free_memory
    from model.train.device import resolve

    try:
        device = resolve(config).run.device
    except ConfigError as error:
        raise Problem(str(error)) from None
    free = free_memory(device)
    if memory is None:
        return device, int(FREE_SHARE * free)
    if memory * 1e9 > free:
        raise Problem(f"--memory: must be at most {free / 1e9:.1f}, the GB free on {device}, got {memory:g}")
    return device, int(memory * 1e9)


def _result_text(result: Mapping[str, Any], room: int) -> str:
    if "peak_bytes" not in result:
        return f"does not fit: {result['out_of_memory']}"
    over = ", which is too much," if result["peak_bytes"] > room else ""
    speed = f"{format_number(result['tokens_per_second'])} tokens/s"
    loss = "" if result["loss"] is not None else "; its loss is not finite, lower optimizer.lr"
    return f"ran in {result['peak_bytes'] / 1e9:.2f} GB{over} at {speed}{loss}"


def _conclude(search: BatchSearch, reason: str) -> None:
    """Print the result and the options that use it.

    Raises:
        NothingFeasible: no batch size ran.
    """
    if not search.best:
        raise NothingFeasible(
            f"{BATCH}: none fits in {search.room / 1e9:.2f} GB, {search.worst} was the smallest tested; "
            "use a smaller model.context or model, or a larger --memory"
        )
    if search.worst > search.cap:
        say(f"{BATCH}={search.best} fits; larger batches were not tested, {reason}")
    else:
        say(f"{BATCH}={search.best} fits, {search.worst} does not")
    say("a larger batch makes fewer updates of the same tokens: the results and the best learning rate change")
    say(f"use: --set {BATCH}={search.best}" + (f" --pack {search.runs}" if search.runs > 1 else ""))

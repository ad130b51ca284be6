"""Choose what is fastest for the work that a study has ahead: compiled steps or not, and how many runs in one pack."""

from collections.abc import Callable
from typing import NamedTuple

from model.config import TrainConfig
from model.data.prepared import PreparedData
from model.errors import ConfigError, is_out_of_memory
from model.memory.capacity import free_memory
from model.memory.estimate import memory_shortage
from model.section import updated
from model.speed.timing import Speed, remembered, speed_of
from model.train.device import compiles, resolve

COMPILE_S = 25.0  # to compile the graphs of a shape on a CPU for the first time
LOAD_S = 3.0  # to load the compiler and the graphs from the cache, in each worker
# Most that compiled steps have saved: of steps whose time is launching operations, and of others. Shorter steps are of
# the first kind. On an H100, a step of one run of 1 M parameters takes 9.5 ms, or 0.58 ms as a CUDA graph, and one of
# blueberry 75 ms, or 18 ms on an H200; there, one of a mixture of 56 M takes 39 ms, or 3.6 ms (docs/gpu.md).
LAUNCHING_S, SAVED_OF_LAUNCHING, SAVED = {"cpu": 0.004, "cuda": 0.1}, 0.75, 0.25
# Seconds of one operation, and operations per second and parameters, in a guess that is never too high.
OPERATION_S, FLOPS = 2e-6, 200e9
SIZES = (1, 4, 16, 64)  # of packs
GAIN = 1.2  # by which each larger pack must be faster; less is noise, and trials side by side learn less of each other

Note = Callable[[str], None]


class Work(NamedTuple):
    """What a study has ahead."""

    tokens: float
    """Tokens that all trials train on."""
    seconds: float
    """Longest time that it may take."""
    shapes: int = 1
    """Number of different shapes, each of which is compiled."""
    trials: int = 1
    """Number of trials."""


def choose_compile(config: TrainConfig, prepared: PreparedData, work: Work, note: Note) -> str:
    """Return whether compiled steps end this work earlier, "on" or "off". note: receives what takes time.

    A study that is too short is not measured at all. Otherwise the steps are measured without compilation, and with it
    if it can pay off.
    """
    if not compiles(config):
        return "off"
    steps = work.tokens / (config.run.batch_size * config.model.context)
    eager, compiled = (updated(config, {"run.compile": value}) for value in ("off", "on"))
    known = remembered(compiled, prepared.vocab_size)
    if min(work.seconds, steps * _guessed_s(config, prepared.vocab_size)) * SAVED < LOAD_S:
        return "off"
    slow = speed_of(eager, prepared)
    total = min(work.seconds, steps * slow.step_s)
    if known is None:
        saved = SAVED_OF_LAUNCHING if slow.step_s < LAUNCHING_S[resolve(config).run.device] else SAVED
        if total * saved < COMPILE_S * work.shapes:
            return "off"
        note("compiling the training step, which takes up to 30 s once on this machine; later runs load it in 3 s")
    try:
        fast = known or speed_of(compiled, prepared)
    except ConfigError as error:  # no compiler that works
        note(f"run.compile: auto is off: {error}")
        return "off"
    left = LOAD_S + (work.shapes - 1) * max(LOAD_S, fast.first_s)
    return "on" if total * (1 - fast.step_s / slow.step_s) > left else "off"


def _guessed_s(config: TrainConfig, vocab_size: int) -> float:
    """Return seconds that a micro-step takes about, without measuring: a hundred operations per layer or its FLOPs."""
    shape = config.model
    weights = 12 * shape.n_layer * shape.n_embd**2 + vocab_size * shape.n_embd
    return 100 * (shape.n_layer + 1) * OPERATION_S + 6 * weights * config.run.batch_size * shape.context / FLOPS


def choose_pack(config: TrainConfig, prepared: PreparedData, work: Work, note: Note) -> int:
    """Return how many runs of this shape train fastest in one pack, at most a quarter of the trials.

    The sizes are measured on the first runs, as far as they fit into memory, until a larger pack is not faster.
    """
    config, best, bound = resolve(config), 1, ""
    limit = free_memory(config.run.device)
    single = speed_of(config, prepared)
    rate, measured = 1 / single.step_s, [f"1: {_rate(config, single, 1)}"]
    for size in SIZES[1:]:
        if size > work.trials // 4:
            bound = f"; at most a quarter of {work.trials} trials"
            break
        if memory_shortage(config, prepared.vocab_size, size, limit):
            break
        if not _worth(config, prepared, size, single, work):
            break
        if remembered(config, prepared.vocab_size, size) is None and config.run.compile == "on":
            note(f"compiling the training step of {size} runs, which takes up to 30 s once on this machine")
        try:
            speed = speed_of(config, prepared, size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        measured.append(f"{size}: {_rate(config, speed, size)}")
        if size / speed.step_s < GAIN * rate:
            break
        best, rate = size, size / speed.step_s
    note(f"--pack auto: {best} ({', '.join(measured)} tokens/s{bound})")
    return best


def _worth(config: TrainConfig, prepared: PreparedData, size: int, single: Speed, work: Work) -> bool:
    """Return whether a pack may save more time than its measurement takes."""
    if remembered(config, prepared.vocab_size, size) is not None:
        return True
    steps = work.tokens / (config.run.batch_size * config.model.context)
    cost = COMPILE_S if config.run.compile == "on" else 1.0
    launching = config.run.device != "cpu" or single.step_s < LAUNCHING_S["cpu"]
    saved = SAVED_OF_LAUNCHING if launching else 1 - 1 / GAIN
    return min(work.seconds, steps * single.step_s) * saved > cost


def _rate(config: TrainConfig, speed: Speed, size: int) -> str:
    return f"{size * config.run.batch_size * config.model.context / speed.step_s:,.0f}"

"""Resolve the fields of a study that are `auto` for this machine, and check that it has what a study resolved."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from pydantic import BaseModel

from hpo.errors import Problem
from hpo.runs.datasets import prepare_data
from hpo.runs.work import possible_numbers, work_ahead
from hpo.study.spec import DEFAULT_TRAIN, Study
from model.cache import cache_root, locked
from model.config import ARITHMETIC_FIELDS, TrainConfig
from model.errors import ConfigError
from model.section import flat, updated


def resolve_arithmetic(study: Study, note: Callable[[str], None]) -> dict[str, Any]:
    """Return what device, precision, compilation and attention of a study's base stand for on this machine.

    note: receives a text before something that takes long.

    Raises:
        Problem: this machine lacks what the base names.
    """
    from model.train.device import resolve  # imports torch

    assert isinstance(study.base, TrainConfig)
    try:
        config = resolve(study.base)
        if study.base.run.compile == "auto":
            config = updated(config, {"run.compile": _compilation(study, config, note)})
    except ConfigError as error:
        raise Problem(f"study {study.name}: {error}") from None
    if config.run.compile == "on":
        config = updated(config, {"run.graph_numbers": possible_numbers(study)})
    fields = flat(config)
    return {path: fields[path] for path in ARITHMETIC_FIELDS if fields[path] != ()}


def _compilation(study: Study, config: TrainConfig, note: Callable[[str], None]) -> str:
    """Return what run.compile: auto stands for, "on" or "off", by the work that the study has ahead."""
    from model.speed.choice import choose_compile

    first = study.configured(study.file.first_baseline)
    assert isinstance(first, TrainConfig)
    values = {"run.device": config.run.device, "run.precision": config.run.precision}
    return choose_compile(updated(first, values), prepare_data(first), work_ahead(study), note)


def choose_pack_size(study: Study, note: Callable[[str], None]) -> int:
    """Return how many trials of a study train fastest side by side in one process of this machine.

    study: with the values that its first worker resolved.
    """
    first = study.configured(study.file.first_baseline)
    if not isinstance(first, TrainConfig) or study.file.train != DEFAULT_TRAIN:
        return 1  # a training function of the user gains nothing from a pack
    from model.speed.choice import choose_pack

    return choose_pack(first, prepare_data(first), work_ahead(study), note)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one worker of this machine measure at a time. Without a cache folder that can be written, all may."""
    with ExitStack() as stack:
        with suppress(ConfigError):
            stack.enter_context(locked(cache_root() / "speed"))
        yield


def check_arithmetic(study: Study) -> None:
    """Check that this machine can train a study whose base has the resolved values.

    Raises:
        Problem: it cannot.
    """
    from model.train.device import resolve

    assert isinstance(study.base, TrainConfig)
    try:
        resolve(study.base)
    except ConfigError as error:
        fields = flat(study.base)
        values = ", ".join(f"{path} {fields[path]}" for path in ARITHMETIC_FIELDS)
        raise Problem(
            f"study {study.name}: all its trials train with the values that its first worker resolved, {values}, and "
            f"this machine cannot: {str(error).partition(';')[0]}; start the worker on a machine of the same kind, or "
            "create another study, for example with --set run.device=auto"
        ) from None


def idle_device_note(config: BaseModel) -> str:
    """Return a note that a configuration trains on the CPU, as its study did, beside a faster device; "" otherwise."""
    if not isinstance(config, TrainConfig) or config.run.device != "cpu":
        return ""
    from model.train.device import best_device

    best = best_device()
    return "" if best == "cpu" else f"note: run.device is cpu; `--set run.device={best}` trains on the {best} device"

"""The text of a study's configurations, prepared once and checked against what the study was begun with."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from hpo.errors import Problem, Unwritable
from model.config import TrainConfig
from model.data.ngrams import anchors
from model.data.prepare import PreparedData, prepare, stderr_progress
from model.errors import CacheError, ConfigError

Progress = Callable[[str, float], None]


def prepare_data(config: TrainConfig, progress: Progress | None = None) -> PreparedData:
    """Return the data of a configuration, made now if this machine has not got it.

    Raises:
        Problem: the text cannot be used.
        Unwritable: there is no room for what is made of it.
    """
    try:
        return prepare(config.data, config.tokenizer, progress or stderr_progress())
    except CacheError as error:
        raise Unwritable(str(error)) from None
    except ConfigError as error:
        raise Problem(str(error)) from None


def describe_data(config: BaseModel) -> tuple[str | None, dict[str, float]]:
    """Return hash and anchors of a configuration's data; none for a configuration of the user's own."""
    if not isinstance(config, TrainConfig):
        return None, {}
    _check_device(config)
    found = prepare_data(config)
    _check_context(found, config)
    return found.hash, anchors(found)


def _check_device(config: TrainConfig) -> None:
    """Refuse a device asked for by name that is not here.

    Raises:
        Problem: it is not.
    """
    if config.run.device in ("auto", "cpu"):
        return
    from model.train.device import resolve  # loads torch, which no other study needs before its workers start

    try:
        resolve(config)
    except ConfigError as error:
        raise Problem(str(error)) from None


def _check_context(found: PreparedData, config: TrainConfig) -> None:
    """Refuse text shorter than one context before any trial is spent on it.

    Raises:
        Problem: some split is too short.
    """
    from model.data.batches import SequenceDataset, TrainingBatches

    try:
        TrainingBatches(found.splits["train"], config.data, config.model.context, config.run.seed)
        for split in ("val", "test") if config.run.test else ("val",):
            SequenceDataset(found.splits[split], config.data.layout, config.model.context)
    except ConfigError as error:
        raise Problem(str(error)) from None


class PreparedDatasets:
    """The prepared data of the configurations that a worker meets, each read once."""

    def __init__(self) -> None:
        self._held: dict[str, PreparedData] = {}

    def training_arguments(self, config: BaseModel) -> dict[str, Any]:
        """Return what a training function is given beside its configurations."""
        return {"prepared": self._of(config)} if isinstance(config, TrainConfig) else {}

    def data_hash(self, config: BaseModel) -> str | None:
        return self._of(config).hash if isinstance(config, TrainConfig) else None

    def _of(self, config: TrainConfig) -> PreparedData:
        key = f"{config.data.preparation_fields()} {config.tokenizer}"
        if key not in self._held:
            self._held[key] = prepare_data(config)
        return self._held[key]

"""Prepare the text of a study's configurations, and check that a configuration can be trained on it."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from hpo.errors import Problem, Unwritable
from model.cache import cache_root
from model.config import TrainConfig
from model.data.ngrams import anchors
from model.data.prepare import prepare, stderr_progress
from model.data.prepared import PreparedData
from model.errors import CacheError, ConfigError

MISSING_FILES = ("data.path: no such file", "data.path: no file matches")
PLACE_REMEDY = "; --set data.path=PATH gives the place of the data on this machine"

Progress = Callable[[str, float], None]


def prepare_data(config: TrainConfig, progress: Progress | None = None) -> PreparedData:
    """Return the prepared data of a configuration. The first call on a machine prepares and caches them.

    progress: called with a step and the fraction of it that is done; None: progress is printed to standard error.

    Raises:
        Problem: The text cannot be used.
        Unwritable: The cache folder cannot hold the prepared data.
    """
    try:
        return prepare(config.data, config.tokenizer, progress or stderr_progress())
    except CacheError as error:
        raise Unwritable(str(error), cache_root() / "prepared data", error.n_bytes) from None
    except ConfigError as error:
        missing = str(error).startswith(MISSING_FILES)
        raise Problem(f"{error}{PLACE_REMEDY if missing else ''}") from None


def describe_data(config: BaseModel) -> tuple[str | None, dict[str, float]]:
    """Return the hash of a configuration's data and its anchors, the losses of n-gram models.

    The result is (None, {}) for a configuration class of the user.

    Raises:
        Problem: The text cannot be used with this configuration, or the requested device is not available.
        Unwritable: The cache folder cannot hold the prepared data.
    """
    if not isinstance(config, TrainConfig):
        return None, {}
    _check_device(config)
    data = prepare_data(config)
    _check_context(data, config)
    return data.hash, anchors(data)


def row_counts(config: BaseModel) -> dict[str, int]:
    """Return what became of the rows of a configuration's data: read, missing, repeated, documents.

    val_tokens and val_documents are the size of the validation split. The result is empty for a configuration class of
    the user, and contains only the size of the split for data that version 0.1 prepared.

    Raises:
        Problem: The text cannot be used.
        Unwritable: The cache folder cannot hold the prepared data.
    """
    return _row_counts(prepare_data(config)) if isinstance(config, TrainConfig) else {}


def _row_counts(data: PreparedData) -> dict[str, int]:
    split = data.splits["val"]
    return {**data.rows, "val_tokens": split.n_targets, "val_documents": split.n_documents}


def data_note(config: BaseModel) -> str:
    """Return what the user should know about the files of a configuration's data, "" if nothing."""
    remark = config.data.remark() if isinstance(config, TrainConfig) else ""
    return remark and f"note: {remark}"


def rows_text(rows: Mapping[str, int]) -> str:
    """Return the result of `row_counts` as a sentence; "" if it is empty."""
    if "read" not in rows:
        return ""
    words = {"read": "rows read", "missing": "missing", "repeated": "repeated", "documents": "documents kept"}
    return ", ".join(f"{rows[key]:,} {text}" for key, text in words.items())


def _check_device(config: TrainConfig) -> None:
    """Check that this machine has the device that the configuration names.

    Raises:
        Problem: It does not.
    """
    if config.run.device in ("auto", "cpu"):
        return
    from model.train.device import resolve  # imports torch, which other studies do not need before workers start

    try:
        resolve(config)
    except ConfigError as error:
        raise Problem(str(error)) from None


def _check_context(data: PreparedData, config: TrainConfig) -> None:
    """Check that every split is at least one context long, before any trial is spent on it.

    Raises:
        Problem: A split is too short.
    """
    from model.data.batches import SequenceDataset, TrainingBatches

    try:
        TrainingBatches(data.splits["train"], config.data, config.model.context, config.run.seed)
        for split in ("val", "test") if config.run.test else ("val",):
            SequenceDataset(data.splits[split], config.data.layout, config.model.context)
    except ConfigError as error:
        raise Problem(str(error)) from None


class PreparedDatasets:
    """The prepared data of a worker's configurations. Each dataset is loaded once."""

    def __init__(self) -> None:
        self._datasets: dict[str, PreparedData] = {}

    def training_arguments(self, config: BaseModel) -> dict[str, Any]:
        """Return the keyword arguments that a training class receives in addition to its configurations."""
        return {"prepared": self._of(config)} if isinstance(config, TrainConfig) else {}

    def data_hash(self, config: BaseModel) -> str | None:
        """Return the hash of a configuration's data, None for a configuration class of the user."""
        return self._of(config).hash if isinstance(config, TrainConfig) else None

    def rows(self, config: BaseModel) -> dict[str, int]:
        """Return what became of the rows of a configuration's data, as `row_counts` does."""
        return self._of(config).rows if isinstance(config, TrainConfig) else {}

    def _of(self, config: TrainConfig) -> PreparedData:
        key = f"{config.data.preparation_fields()} {config.tokenizer}"
        if key not in self._datasets:
            self._datasets[key] = prepare_data(config)
        return self._datasets[key]

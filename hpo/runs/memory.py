"""Whether a trial can fit into memory, asked before anything of it is spent."""

from pydantic import BaseModel

from hpo.runs.datasets import PreparedDatasets
from hpo.study.spec import DEFAULT_TRAIN, Study
from model.config import TrainConfig
from model.errors import ConfigError


def memory_problem(study: Study, config: BaseModel, corpora: PreparedDatasets) -> str | None:
    """Return why a trial does not fit by estimate, None where it does, or where it was shown to.

    The baseline was tried before the first trial, so what has its shape fits, unless the study sets a limit of its own.
    """
    limit = study.file.limits.memory_gb
    if study.file.train != DEFAULT_TRAIN or not isinstance(config, TrainConfig):
        return None
    if limit is None and config.pack_key() == study.configured(study.file.first_baseline).pack_key():  # type: ignore[attr-defined]
        return None
    # Loaded only here: the estimate goes through torch's fake tensors, which take two seconds to load.
    from model.memory.capacity import free_memory
    from model.memory.estimate import memory_shortage
    from model.train.device import resolve

    try:
        allowed = int(limit * 1e9) if limit is not None else free_memory(resolve(config).run.device)
        return memory_shortage(config, corpora.training_arguments(config)["prepared"].vocab_size, 1, allowed)
    except (ConfigError, ValueError):  # said when the run is built
        return None


def dry_run_baseline(study: Study, datasets: PreparedDatasets) -> None:
    """Train the first two updates of the baseline, and correct later memory estimates by the measured peak.

    Raises:
        Exception: the updates fail.
    """
    from model.memory.dry_run import dry_run

    config = study.configured(study.file.first_baseline)
    assert isinstance(config, TrainConfig)
    calibrate_estimate(study, datasets, dry_run(config, **datasets.training_arguments(config)).peak_bytes)


def calibrate_estimate(study: Study, corpora: PreparedDatasets, measured: int) -> None:
    """Let what the baseline took correct later estimates on this machine, where there will be any."""
    shapes = ("model.", "tokenizer.", "run.batch_size")
    if study.file.limits.memory_gb is None and not any(path.startswith(shapes) for path in study.file.space):
        return
    from model.memory import capacity
    from model.memory.estimate import estimate_memory
    from model.train.device import resolve

    config = study.configured(study.file.first_baseline)
    assert isinstance(config, TrainConfig)
    vocab_size = corpora.training_arguments(config)["prepared"].vocab_size
    capacity.record_measurement(estimate_memory(config, vocab_size).total, measured, resolve(config).run.device)

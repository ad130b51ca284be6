"""Estimate whether a trial fits into memory before it starts."""

from pydantic import BaseModel

from hpo.runs.datasets import PreparedDatasets
from hpo.study.spec import DEFAULT_TRAIN, Study
from model.config import TrainConfig
from model.errors import ConfigError


def memory_problem(study: Study, config: BaseModel, datasets: PreparedDatasets, probed: bool) -> str | None:
    """Return why a trial does not fit into memory by estimate, None if it fits.

    Workers train the first updates of the baseline before the first trial. A configuration with the baseline's shapes
    therefore fits, unless the study sets limits.memory_gb.

    probed: whether the study has cool-down probes.
    """
    limit = study.file.limits.memory_gb
    if study.file.train != DEFAULT_TRAIN or not isinstance(config, TrainConfig):
        return None
    if limit is None and config.pack_key() == study.configured(study.file.first_baseline).pack_key():  # type: ignore[attr-defined]
        return None
    # Imported here, because the estimate uses torch's fake tensors, whose import takes two seconds.
    from model.memory.capacity import free_memory
    from model.memory.estimate import memory_shortage
    from model.train.device import resolve

    try:
        allowed = int(limit * 1e9) if limit is not None else free_memory(resolve(config).run.device)
        return memory_shortage(config, datasets.training_arguments(config)["prepared"].vocab_size, 1, allowed, probed)
    except (ConfigError, ValueError):  # reported when the run is built
        return None


def trial_costs(study: Study, config: BaseModel, datasets: PreparedDatasets) -> dict[str, float]:
    """Return the number of parameters and the estimated memory in GB where these are objectives of the GPT trainer."""
    names = {"parameters", "memory"} & set(study.file.objectives)
    if not names or study.file.train != DEFAULT_TRAIN or not isinstance(config, TrainConfig):
        return {}
    from model.memory.estimate import estimate_memory

    try:
        estimate = estimate_memory(config, datasets.training_arguments(config)["prepared"].vocab_size)
    except (ConfigError, ValueError):  # reported when the run is built
        return {}
    costs = {"parameters": estimate.parameters // 4, "memory": estimate.total / 1e9}  # weights are float32
    return {name: costs[name] for name in names}


def dry_run_baseline(study: Study, datasets: PreparedDatasets) -> None:
    """Train the first two updates of the baseline, and correct later memory estimates by the measured peak.

    Raises:
        Exception: The updates fail.
    """
    from model.memory.dry_run import dry_run

    config = study.configured(study.file.first_baseline)
    assert isinstance(config, TrainConfig)
    calibrate_estimate(study, datasets, dry_run(config, **datasets.training_arguments(config)).peak_bytes)


def calibrate_estimate(study: Study, datasets: PreparedDatasets, measured: int) -> None:
    """Correct later estimates on this machine by the measured peak memory of the baseline.

    Does nothing if the study needs no estimates, which is the case if no trial can need more memory than the baseline.

    measured: in bytes.
    """
    paths = ("model.", "tokenizer.", "run.batch_size")  # fields on which the memory depends
    if study.file.limits.memory_gb is None and not any(path.startswith(paths) for path in study.file.space):
        return
    from model.memory import capacity
    from model.memory.estimate import estimate_memory
    from model.train.device import resolve

    config = study.configured(study.file.first_baseline)
    assert isinstance(config, TrainConfig)
    vocab_size = datasets.training_arguments(config)["prepared"].vocab_size
    capacity.record_measurement(estimate_memory(config, vocab_size).total, measured, resolve(config).run.device)

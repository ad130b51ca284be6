"""`hpo transfer --check`: the coordinate check of the parametrization of a study."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from hpo.console import Format, format_duration, print_records, say
from hpo.errors import Problem
from hpo.queue.inspect import unregistered_problem
from hpo.runs.datasets import prepare_data
from hpo.storage.attributes import COORDINATES, SPEC
from hpo.storage.store import open_store
from hpo.storage.studies import resolve_study_name, study_attrs, study_ids
from hpo.study.places import at_places
from hpo.study.spec import DEFAULT_TRAIN, Study
from hpo.study.stored import study_from_spec
from hpo.transfer.coordinates import coordinate_lines, coordinate_table, run_sweep, sweep_configs, sweep_values
from model.config import TrainConfig
from model.errors import ConfigError

UPDATES, SEEDS = 10, 3


@dataclass(frozen=True)
class CheckRequest:
    """The options of `hpo transfer --check`.

    widths, depths: of the networks, None for multiples of the base. overrides: places of files, as in `--set`.
    """

    study: str | None
    widths: Sequence[int] | None
    depths: Sequence[int] | None
    overrides: Sequence[str]


def check_coordinates(request: CheckRequest, storage: str, format: Format) -> int:
    """Train networks of several widths and depths for a few updates, print the sizes of their activations and store
    them with the study, whose report shows them. Return the exit status.

    Raises:
        Problem: the study has a training function of its own, or a size does not fit its configuration.
    """
    store = open_store(storage)
    name = resolve_study_name(store, request.study)
    study_id = study_ids(store)[name]
    attrs = study_attrs(store, study_id, name)
    if SPEC not in attrs:
        raise unregistered_problem(store, name, study_id, attrs)
    config = _base(at_places(study_from_spec(attrs[SPEC], name), request.overrides))
    sweeps = {
        path: sweep_configs(config, path, values)
        for path, values in sweep_values(config, request.widths, request.depths).items()
    }
    start = time.monotonic()
    try:
        from model.train.coordinates import activation_sizes

        prepared = prepare_data(config)
        measure = partial(activation_sizes, n_updates=UPDATES, seeds=range(SEEDS), prepared=prepared)
        found = [run_sweep(configs, path, measure) for path, configs in sweeps.items()]
    except ConfigError as error:
        raise Problem(f"{name}: {error}") from None
    parametrization = config.model.parametrization
    record = {"parametrization": parametrization, "seeds": SEEDS, "sweeps": found}
    store.optuna.set_study_user_attr(study_id, COORDINATES, record)
    print_records(coordinate_table(found), format)
    say("\n".join(["", *coordinate_lines(parametrization, found)]))
    say(f"coordinate check of {name}: {format_duration(time.monotonic() - start)}; `hpo report` shows it")
    return 0


def _base(study: Study) -> TrainConfig:
    """Return the base of a study that hpo trains.

    Raises:
        Problem: the study has a configuration or a training function of its own.
    """
    if study.file.train != DEFAULT_TRAIN or not isinstance(study.base, TrainConfig):
        raise Problem(
            f"--check: must be used with a study that hpo trains, because it measures hpo's network, and {study.name} "
            f"trains {study.file.train}"
        )
    return study.base

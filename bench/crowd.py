"""Create a long study without training: thousands of trials, stored as a worker stores them, in seconds."""

import json
import math
import random
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import TrialState
from pydantic import BaseModel, Field

from hpo.config.permission import permit
from hpo.optuna_internals.objects import get_study_id, rdb_models
from hpo.queue.heartbeat import lease_seconds
from hpo.queue.registry import StoredStudy, register_study
from hpo.runs.provenance import describe_machine
from hpo.storage.attributes import END_REASON, MACHINE, METRICS
from hpo.storage.schema import SLOT
from hpo.storage.store import Store
from hpo.study.spec import Study
from hpo.study.stored import study_from_spec

RUNGS = 20
EPOCH = datetime(2026, 1, 1)
Row = dict[str, Any]
SPACE: dict[str, dict[str, Any]] = {
    "lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "beta2": {"low": 0.8, "high": 0.9999, "complement_log": True},
    "weight_decay": {"low": 1e-3, "high": 1.0, "log": True},
    "dropout": {"low": 0.0, "high": 0.5},
    "warmup": {"low": 0.0, "high": 0.3},
    "clip": {"low": 0.1, "high": 10.0, "log": True},
    "n_layer": {"low": 1, "high": 12},
    "norm": {"choices": ["layer", "rms", "none"]},
}


class Config(BaseModel):
    """Eight hyperparameters of a run."""

    lr: float = Field(default=1e-3, gt=0)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    n_layer: int = Field(default=4, ge=1)
    norm: str = "layer"


def loss(config: Config) -> float:
    """Return the final loss: a quadratic bowl with minimum 1 inside the space, and a valley across lr and beta2."""
    lr, beta2 = math.log10(config.lr) + 2.5, math.log10(1 - config.beta2) + 2.5
    return (
        1
        + (lr - 0.5 * beta2) ** 2
        + 0.3 * beta2**2
        + 0.2 * (math.log10(config.weight_decay) + 1) ** 2
        + 2 * (config.dropout - 0.1) ** 2
        + 2 * (config.warmup - 0.05) ** 2
        + 0.1 * math.log10(config.clip) ** 2
        + 0.01 * (config.n_layer - 6) ** 2
        + {"layer": 0.1, "rms": 0.0, "none": 0.5}[config.norm]
    )


def train(config: Config) -> Iterator[tuple[int, float]]:
    """Report a curve that falls from 5 to the loss, without training."""
    end = loss(config)
    for rung in range(1, RUNGS + 1):
        yield rung, end + (5 - end) * math.exp(-6 * rung / RUNGS)


def study(n_trials: int, sampler: Mapping[str, Any] | None = None, name: str = "crowd") -> Study:
    """Return a study of `n_trials` trials."""
    spec = {
        "name": name,
        "train": "bench.crowd:train",
        "config": "bench.crowd:Config",
        "rungs": RUNGS,
        "space": SPACE,
        "sampler": dict(sampler or {"name": "tpe"}),
        "budget": {"trials": n_trials},
        "rung_tokens": None,
    }
    return study_from_spec(spec)


def plant(store: Store, n_finished: int, n_running: int, sampler: Mapping[str, Any] | None = None) -> StoredStudy:
    """Create a study with finished trials, half of them pruned, and running trials; 100 slots are free."""
    permit(["bench.crowd:train"])
    stored = register_study(store, study(n_finished + n_running + 100, sampler), None, {})
    draw = random.Random(0)
    lease = stored.slots.now() + lease_seconds()
    host = describe_machine()
    with store.engine.begin() as connection:
        first = (connection.execute(sa.select(sa.func.max(models.TrialModel.trial_id))).scalar() or 0) + 1
        for lowest in range(0, n_finished + n_running, 500):
            numbers = range(lowest, min(lowest + 500, n_finished + n_running))
            trials = [_rows(stored, draw, host, number, number < n_finished) for number in numbers]
            for place, model in enumerate(_MODELS):
                rows = [
                    {"trial_id": first + n, **row}
                    for n, some in zip(numbers, trials, strict=True)
                    for row in some[place]
                ]
                if rows:
                    connection.execute(sa.insert(model.__table__), rows)
        began = sa.update(SLOT).where(SLOT.c.study_id == get_study_id(stored.optuna))
        values = {"trial_id": SLOT.c.slot + first, "attempt": 1, "owner": "host:1:a", "lease_until": lease}
        connection.execute(began.where(SLOT.c.slot < n_finished).values(state="done", **values))
        running = sa.and_(SLOT.c.slot >= n_finished, SLOT.c.slot < n_finished + n_running)
        connection.execute(began.where(running).values(state="leased", **values))
        if connection.dialect.name == "postgresql":  # the ids above do not come from the sequence
            connection.exec_driver_sql("SELECT setval('trials_trial_id_seq', (SELECT max(trial_id) FROM trials))")
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")  # Postgres itself does this within a minute
    return stored


# In the order of _rows.
models = rdb_models()
_MODELS: list[Any] = [
    models.TrialModel,
    models.TrialValueModel,
    models.TrialIntermediateValueModel,
    models.TrialParamModel,
    models.TrialUserAttributeModel,
    models.TrialSystemAttributeModel,
]


def _rows(
    stored: StoredStudy, draw: random.Random, host: Mapping[str, Any], number: int, ended: bool
) -> list[list[Row]]:
    """Return the rows of one trial for each of _MODELS."""
    config = Config(**{path: _drawn(draw, entry) for path, entry in SPACE.items()})
    pruned = ended and number % 2 == 1
    last = RUNGS if ended and not pruned else draw.randint(5, RUNGS - 1)
    curve = dict(list(train(config))[:last])
    state = TrialState.PRUNED if pruned else TrialState.COMPLETE if ended else TrialState.RUNNING
    began = EPOCH + timedelta(seconds=10 * number)
    trial = {"number": number, "study_id": get_study_id(stored.optuna), "state": state, "datetime_start": began}
    trial["datetime_complete"] = began + timedelta(seconds=30) if ended else None
    attrs: Row = {"slot": number, "attempt": 1, "kind": "search" if number else "baseline", "worker": "host:1:a"}
    attrs[MACHINE] = {**host, "pack": 1}
    if ended:
        attrs |= {METRICS: metrics(last, curve[last]), END_REASON: state.name.lower()}
    kinds = {path: _kind(stored, path) for path in SPACE}
    plain = config.model_dump()
    return [
        [trial],
        [{"objective": 0, "value": curve[last], "value_type": "FINITE"}] if ended else [],
        [{"step": n, "intermediate_value": v, "intermediate_value_type": "FINITE"} for n, v in curve.items()],
        [
            {
                "param_name": path,
                "param_value": kind.to_internal_repr(plain[path]),
                "distribution_json": distribution_to_json(kind),
            }
            for path, kind in kinds.items()
        ],
        [{"key": key, "value_json": json.dumps(value)} for key, value in attrs.items()],
        [{"key": "tpe:relative_params:0", "value_json": json.dumps(json.dumps(plain))}],
    ]


def metrics(rung: int, value: float) -> Row:
    """Return metrics of about 1 kB, as many as those of a GPT."""
    groups = ("embedding", "attention", "mlp", "norm", "head")
    names = [f"{what}_{group}" for what in ("grad_norm", "update_norm", "weight_norm") for group in groups]
    return (
        {"rung": rung, "val_loss": value}
        | {name: value / (1 + i) for i, name in enumerate(names)}
        | {
            "lr": dict.fromkeys(groups, value / 3),
            "clipped": dict.fromkeys(groups, value / 7),
        }
    )


def _drawn(draw: random.Random, entry: Mapping[str, Any]) -> Any:
    if "choices" in entry:
        return draw.choice(entry["choices"])
    low, high = entry["low"], entry["high"]
    if isinstance(low, int):
        return draw.randint(low, high)
    if entry.get("complement_log"):
        return 1 - (1 - high) * ((1 - low) / (1 - high)) ** draw.random()
    return low * (high / low) ** draw.random() if entry.get("log") else draw.uniform(low, high)


def _kind(stored: StoredStudy, path: str) -> BaseDistribution:
    return stored.study.file.space[path].distribution(Config.model_fields[path].annotation or float)

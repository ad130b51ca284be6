"""A configuration, spaces of it, and searches of a sampler without training."""

import math
from typing import Annotated, Any, Literal

import optuna
from pydantic import Field, TypeAdapter

from hpo.search.ranges import Space
from hpo.search.samplers import Sampler, build_sampler
from hpo.search.space import suggest_values
from model.section import Count, Decay, Fraction, Positive, Section


class AdamW(Section):
    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    beta2: Decay = 0.95


class SGD(Section):
    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.1
    momentum: Decay = 0.9


class Run(Section):
    batch_size: Count = 8
    dropout: Fraction = 0.0
    decay: Decay = 0.99


class Config(Section):
    optimizer: Annotated[AdamW | SGD, Field(discriminator="name")] = AdamW()
    run: Run = Run()


BASE = Config()
BETA2 = {"low": 0.8, "high": 0.9999, "complement_log": True}
LR = {"low": 1e-4, "high": 1e-1, "log": True}


def space(**entries: Any) -> Space:
    return TypeAdapter(Space).validate_python({k.replace("__", "."): v for k, v in entries.items()})


def sampler(name: str, **fields: Any) -> Any:
    return TypeAdapter(Sampler).validate_python({"name": name, **fields})


TWO = space(optimizer__beta2=BETA2, optimizer__lr=LR)


def loss(values: dict[str, Any]) -> float:
    """Least at 1 - beta2 = 0.003 and lr = 0.003, a bowl in the logarithms."""
    fields = {"optimizer.beta2": 0.9, "run.decay": 0.997} | values
    return sum(
        (math.log10(x) - math.log10(0.003)) ** 2
        for x in (1 - fields["optimizer.beta2"], 1 - fields["run.decay"], fields["optimizer.lr"])
    )


def search(study: optuna.Study, kind: Any, varied: Space, n_trials: int, study_seed: int = 7) -> list[dict[str, Any]]:
    """What a worker does, without the training."""
    found = []
    for slot in range(n_trials):
        study.sampler = build_sampler(kind, BASE, varied, seed=1000 * study_seed + slot, study_seed=study_seed)
        trial = study.ask()
        found.append(suggest_values(trial, BASE, varied))
        study.tell(trial, loss(found[-1]))
    return found

"""What a study is: one YAML file a question, and what follows from it. hpo/checking.py reads such files."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, field_validator, model_validator

from hpo.config.addresses import current_address, with_current_addresses
from hpo.config.importer import import_target
from hpo.search.pruners import Median, Pruner
from hpo.search.ranges import Space
from hpo.search.samplers import TPE, Sampler
from hpo.search.space import closed_ends
from model.section import Count, Positive, Section, flat, updated

M = TypeVar("M", bound=BaseModel)
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Share = Annotated[float, Field(gt=0, le=1)]

STUDY_NAME = re.compile(r"[^\W_][\w.+-]{0,99}")  # of a study that a command makes

# Keys that only a search has.
SEARCH_KEYS = ("space", "baseline", "baseline_seeds", "sampler", "pruner")

DEFAULT_CONFIG = "model.config:TrainConfig"
DEFAULT_TRAIN = "model.train.trainer:Trainer"


class Budget(Section):
    """When a study ends: at the first of these that is reached."""

    trials: Count | None = None
    """Trials to run, baseline and pruned ones included."""
    hours: Positive | None = None
    """Hours since the study was first launched, after which no trial is begun."""
    tokens: Count | None = None
    """Tokens trained by all trials together; a trial is begun only where all of it fits."""
    target: str | None = None
    """Name of one of `targets`: once a trial has reached it, no further one is begun; those that run go on to their
    end."""

    @model_validator(mode="after")
    def _some_end(self) -> Self:
        if self.trials is None and self.hours is None and self.tokens is None and self.target is None:
            raise ValueError("must give trials, hours, tokens or target")
        return self


class Limits(Section):
    """What one trial may use; one that would use more is pruned, and the sampler learns to keep away."""

    seconds: Positive | None = None
    """Seconds of one trial, validation included, over all its attempts."""
    memory_gb: Positive | None = None
    """Memory of one trial on its device, in 1e9 bytes. Left out: what the device has."""


class StudyFile(Section):
    """The keys of a study file."""

    base: dict[str, Any] = Field(default_factory=dict)
    """A configuration; what is left out keeps its default, or is that of the base whose name is given as `from`."""
    space: Space = Field(default_factory=dict)
    """Dotted field of the configuration -> the range to search."""
    arms: dict[Name, dict[str, Any]] | None = Field(default=None, min_length=1)
    """Instead of a space, name -> what differs from the base: each is run with each of `seeds`, and none is pruned."""
    seeds: tuple[Seed, ...] = ()
    """Of the runs of each arm: runs of one seed share initial weights and batches, and are compared in pairs."""
    equal: Literal["tokens", "updates", "seconds"] = "tokens"
    """What all arms are trained for the same number of. seconds: until the first of them has ended."""
    baseline: tuple[dict[str, Any], ...] = ({},)
    """Configurations that run first, exactly once, never pruned: dotted field -> value; {} is the base itself."""
    baseline_seeds: Count = 1
    """Runs of the first baseline, each with another seed: what they differ by is the noise that a result must beat."""
    sampler: Sampler = TPE()
    pruner: Pruner = Median()
    budget: Budget = Budget(trials=24)
    limits: Limits = Limits()
    targets: dict[Name, Finite] = Field(default_factory=dict)
    """Name -> a value of the objective to be reached, such as {tier1: 1.9}."""
    milestones: dict[Share, Finite] = Field(default_factory=dict)
    """Share of a run -> the value of the objective expected by then, such as {0.5: 4.2}."""
    keep_best: Annotated[int, Field(ge=0)] = 3
    """Finished trials whose checkpoints stay on disk: so many of the best."""
    objective: str = "val_loss"
    """The metric to make small: val_loss, or val_bpb, which a study that varies tokenizer or data must use; with ema_
    before it, of the averaged weights."""
    seed: int = 0
    """Of the sampler."""
    train: str = DEFAULT_TRAIN
    """module:function that trains a configuration, a generator of (rung, value)."""
    config: str = DEFAULT_CONFIG
    """module:Class of the configuration, a pydantic model."""
    rungs: Count | None = None
    """Reports of one run, for a `train` of the user's own; the GPT's are run.rungs."""
    about: dict[str, Any] = Field(default_factory=dict)
    """What a study of arms was made for, as `hpo confirm`, `hpo ablate` and `hpo claims` note it."""

    @field_validator("train", "config")
    @classmethod
    def _current_address(cls, address: str) -> str:
        return current_address(address)

    @property
    def first_baseline(self) -> dict[str, Any]:
        """The values of the first baseline: dotted field -> value; {} for the base, also without any baseline."""
        return dict(next(iter(self.baseline), {}))

    @model_validator(mode="after")
    def _something_to_run(self) -> Self:
        if not self.space and self.arms is None:
            raise ValueError("space: must have one field at least; or give arms, configurations to compare")
        return self


@dataclass(frozen=True)
class Study:
    """A checked study: its name, its file and its base configuration."""

    name: str
    source: str
    file: StudyFile
    base: BaseModel

    @property
    def rungs(self) -> int:
        own = self.file.rungs
        return own if own is not None else int(flat(self.base)["run.rungs"])

    @property
    def rung_tokens(self) -> float | None:
        """Tokens between two rungs, None for a training function of the user's own that does not say."""
        measure = getattr(self.base, "rung_tokens", None)
        return measure() if measure else None

    @property
    def rungs_in_budget(self) -> int | None:
        """Rungs of all trials that a budget in tokens pays for, the last of them perhaps in part; None without one."""
        if self.file.budget.tokens is None or not self.rung_tokens:
            return None
        return math.ceil(self.file.budget.tokens / self.rung_tokens)

    def configured(self, values: Mapping[str, Any]) -> BaseModel:
        """Return the base with these fields replaced."""
        return updated(self.base, values)

    def slots(self) -> list[tuple[str, dict[str, Any] | None]]:
        """Return kind and fixed values of each trial of the budget: baselines first."""
        path = seed_path(self.base) or ""
        if self.file.arms is not None:
            return [("arm", {**arm, path: seed}) for seed in self.file.seeds for arm in self.file.arms.values()]
        wanted: list[tuple[str, dict[str, Any] | None]] = [("baseline", dict(b)) for b in self.file.baseline]
        wanted += [("seed", {**self.file.first_baseline, path: seed}) for seed in self.noise_seeds()]
        points = self.file.sampler.combinations(self.base, self.file.space)
        # Without a limit in trials, rows enough that hours or tokens end the study first.
        n = (self.file.budget.trials or 10_000) - len(wanted)
        if points is None:
            return wanted + [("search", None)] * n
        return wanted + [("search", points[i]) for i in range(min(n, len(points)))]

    def noise_seeds(self) -> list[int]:
        """Return the seeds with which the first baseline is run again."""
        path = seed_path(self.base)
        if self.file.baseline_seeds < 2 or path is None:
            return []
        first = flat(self.configured(self.file.first_baseline))[path]
        return [first + i for i in range(1, self.file.baseline_seeds)]

    def spec(self) -> dict[str, Any]:
        """Return all that a worker elsewhere needs, as JSON values."""
        tree: dict[str, Any] = self.file.model_dump(mode="json", exclude={"base"})
        derived = {"name": self.name, "rungs": self.rungs, "rung_tokens": self.rung_tokens}
        derived["closed"] = closed_ends(self.base, self.file.space)
        return tree | {"base": self.base.model_dump(mode="json")} | derived


def seed_path(config: BaseModel) -> str | None:
    """Return the field that holds a run's seed, None where there is none."""
    return next((path for path in ("run.seed", "seed") if path in flat(config)), None)


def study_file_tree(spec: Mapping[str, Any], budget: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to write into a study file to begin this study again, its overrides included."""
    arms = spec.get("arms")
    left_out = {"name", "rung_tokens", "closed", "about", *(SEARCH_KEYS if arms else ("arms", "seeds", "equal"))}
    left_out |= {"rungs"} if spec["config"] == DEFAULT_CONFIG else set()
    tree = {key: value for key, value in spec.items() if key not in left_out}
    tree["budget"] = {
        key: value for key, value in budget.items() if value is not None and not (arms and key == "trials")
    }
    return {
        key: value for key, value in tree.items() if value not in ({}, [], None) or (key == "baseline" and not arms)
    }


def study_from_spec(spec: Mapping[str, Any]) -> Study:
    """Return the study that `Study.spec` described."""
    tree = {key: value for key, value in spec.items() if key not in ("name", "rung_tokens", "closed")}
    file = StudyFile.model_validate(tree)
    return Study(spec["name"], f"study {spec['name']}", file, import_target(file.config, "config")(**file.base))


def spec_fingerprint(spec: Mapping[str, Any]) -> str:
    """Return a hash of what must not change while a study runs: all but its budget."""
    fixed = {key: value for key, value in with_current_addresses(spec).items() if key != "budget"}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

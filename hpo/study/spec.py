"""The study: the keys of a study file, and the properties that follow from them. `load` reads study files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from hpo.config.addresses import current_address
from hpo.config.permission import BUILT_IN
from hpo.config.validation import NameOnly
from hpo.errors import user_code
from hpo.search.direction import Direction
from hpo.search.probe_config import Probe
from hpo.search.probes import NO_PROBES, ProbePlan, plan_of
from hpo.search.pruners import Median, Pruner
from hpo.search.ranges import Space
from hpo.search.samplers import TPE, Sampler
from hpo.search.space import closed_ends
from hpo.study.command import CommandPlan, CommandWords, Metric, Steps
from hpo.study.command_config import complete_command
from hpo.study.limits import Budget, Limits
from hpo.study.objectives import split_objectives
from hpo.study.trackers import TrackerNames
from model.section import Count, Section, flat, updated

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Share = Annotated[float, Field(gt=0, le=1)]

SEED_FIELDS = ("run.seed", "seed")  # a configuration has one of them, or none
# Keys of a study file that a study of arms does not have.
SEARCH_KEYS = ("space", "baseline", "baseline_seeds", "sampler", "pruner", "probe")

DEFAULT_CONFIG, DEFAULT_TRAIN = BUILT_IN["config"], BUILT_IN["train"]


class StudyFile(Section):
    """The keys of a study file."""

    base: dict[str, Any] = Field(default_factory=dict)
    """The training configuration from which all trials start. With `from: NAME`, omitted fields have the value of that
    base configuration; otherwise they have their default."""
    space: Space = Field(default_factory=dict)
    """The fields to search: dotted field of the configuration -> range or choices. Required, unless the study has
    arms."""
    arms: dict[Name, dict[str, Any]] | None = Field(default=None, min_length=1)
    """Configurations to compare, instead of a space: name of the arm -> fields that differ from the base. Each arm runs
    with each of `seeds`, and no run is pruned."""
    seeds: tuple[Seed, ...] = ()
    """Seeds of the runs of each arm. Runs with the same seed have the same initial weights and batches, and are
    compared in pairs. Required with arms."""
    equal: Literal["tokens", "updates", "seconds"] = "tokens"
    """The unit in which all arms must train for the same length. seconds: lengths may differ, and `hpo claims` compares
    the arms at the time at which the first of them ends."""
    baseline: tuple[dict[str, Any], ...] = ({},)
    """Configurations that run first and are never pruned: dotted field -> value. {} is the unchanged base. Each runs
    once, except the first, which runs `baseline_seeds` times."""
    baseline_seeds: Count = 1
    """Number of runs of the first baseline, each with a different seed. The standard deviation of their results is
    the noise estimate."""
    sampler: Sampler = TPE()
    """How the values of the next trial are chosen. A name alone, such as `sampler: gp`, selects a sampler with its
    defaults."""
    pruner: Pruner = Median()
    """Which trials stop early. A name alone, such as `pruner: asha`, selects a pruner with its defaults."""
    probe: Probe = "auto"
    """Cool-down probes, by which pruners compare long runs: at some rungs, a copy of a run is trained on while its
    learning rate falls to its end, and scored as probe_val_loss. {rungs: [2, 4], share: 0.05} states rungs and length.
    auto: probe if the number of updates, or the first finished runs, show that raw losses rank badly. Studies of
    earlier versions continue with off."""
    budget: Budget = Budget(trials=24)
    """When the study ends."""
    limits: Limits = Limits()
    """The maximum time and memory of one trial."""
    targets: dict[Name, Finite] = Field(default_factory=dict)
    """Values of the objective to reach: name -> value, such as {tier1: 1.9}. Reports show which trial reached which
    target, and after how many tokens. `budget.target` is one of these names."""
    milestones: dict[Share, Finite] = Field(default_factory=dict)
    """Values of the objective to reach during a run: fraction of the run -> value, such as {0.5: 4.2}. `hpo status`
    compares the best trial with them. They do not affect the search."""
    keep_best: Annotated[int, Field(ge=0)] = 3
    """Number of best complete trials whose checkpoints are kept on disk. run.keep_checkpoints selects which ones."""
    objective: str = "val_loss"
    """The metric to optimize: val_loss (nats per token) or val_bpb (bits per byte). A study that searches the tokenizer
    must use val_bpb. ema_val_loss and ema_val_bpb are the metrics of the averaged weights. A list, such as [val_loss,
    seconds], adds objectives of which the report shows the front; seconds, tokens, parameters or memory (GB)."""
    objectives: tuple[Name, ...] = ()
    """Write `objective: [val_loss, seconds]` instead. The search uses the first; of the others, less is better."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Whether a smaller or a larger objective is better. maximize requires your own training function or a command,
    for an objective such as accuracy."""
    seed: int = 0
    """Seed of the sampler. The seed of a run is run.seed of the base."""
    train: str = DEFAULT_TRAIN
    """Training function as module:name: a callable that takes a configuration and yields (rung, value) or
    (rung, metrics). Default: the GPT trainer."""
    config: str = DEFAULT_CONFIG
    """Class of the configuration as module:name, a pydantic model. Default: the configuration of the GPT trainer."""
    command: CommandWords | None = None
    """Program that trains one configuration, as text or as a list of words, instead of `train` and `config`: [python,
    train.py, "--lr={lr}"]. In its words, {NAME} is the value of a parameter, {flags} all parameters as --NAME=VALUE,
    {config} a YAML file and {config.json} a JSON file with them, {seed} the seed and {dir} the folder of the trial."""
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(default_factory=dict)
    """Additional environment variables of the command. {NAME} and the others have the same meaning as in its words."""
    metric: Metric | None = None
    """Where hpo reads the metrics of the command: a pattern of its output, or a file."""
    steps: Steps | None = None
    """The steps at which runs of the command are compared and may be pruned. Default: the run is compared by the last
    value that it reports."""
    rungs: Count | None = None
    """Number of rungs of your own training function: how many values each run reports. Required if `config` has no
    field run.rungs. The GPT trainer uses run.rungs."""
    track: TrackerNames = ()
    """Trackers to which each trial is copied: mlflow, wandb, tensorboard or a list of them. --track replaces them."""
    about: dict[str, Any] = Field(default_factory=dict)
    """Metadata that `hpo confirm`, `hpo ablate` and `hpo claims` store with their studies. Omit it in study files."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return complete_command(split_objectives(given))

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return NameOnly(name=value) if isinstance(value, str) else value

    @field_validator("train", "config")
    @classmethod
    def _current_address(cls, address: str) -> str:
        return current_address(address)

    @property
    def training(self) -> str | CommandPlan:
        """What trains a configuration: the address of a training function, or a command."""
        if self.command is None:
            return self.train
        return CommandPlan(self.command, self.env, self.metric, self.steps, self.objective, self.limits.memory_gb)

    @property
    def first_baseline(self) -> dict[str, Any]:
        """The values of the first baseline: dotted field -> value. {} if it is the base, or if there is none."""
        return dict(next(iter(self.baseline), {}))

    @model_validator(mode="after")
    def _something_to_run(self) -> Self:
        if not self.space and self.arms is None:
            raise ValueError("space: must have at least one field; add a field, or add arms to compare configurations")
        return self


@dataclass(frozen=True)
class Study:
    """A valid study: its name, where it comes from, its file and its complete base configuration.

    objections: problems because of which a new study is refused. A study in the storage continues in spite of them.
    stated: dotted fields of the base that the study file, a base of the user or --set gives; None for all fields.
    shipped: whether the study ships with hpo and was selected by its name. Its file may change with the version.
    """

    name: str
    source: str
    file: StudyFile
    base: BaseModel
    objections: tuple[str, ...] = ()
    stated: frozenset[str] | None = None
    shipped: bool = False

    @property
    def direction(self) -> Direction:
        """Whether a smaller or a larger objective is better."""
        return Direction(self.file.direction)

    @property
    def rungs(self) -> int:
        """Number of values that a run reports."""
        own = self.file.rungs
        if self.file.command is not None:
            return self.file.steps.n_rungs if self.file.steps else 1
        return own if own is not None else int(flat(self.base)["run.rungs"])

    @property
    def rung_tokens(self) -> float | None:
        """Number of tokens between two rungs, None if the configuration does not count tokens."""
        measure = getattr(self.base, "rung_tokens", None)
        return measure() if measure else None

    @property
    def rungs_in_budget(self) -> int | None:
        """Number of rungs of all trials within the token budget, rounded up; None without such a budget."""
        if self.file.budget.tokens is None or not self.rung_tokens:
            return None
        return math.ceil(self.file.budget.tokens / self.rung_tokens)

    def probe_plan(self, stored: Mapping[str, Any] | None) -> ProbePlan | None:
        """Return what the study probes, None while `auto` has not decided. stored: what `auto` has decided."""
        if self.file.arms is not None or (self.file.train, self.file.config) != (DEFAULT_TRAIN, DEFAULT_CONFIG):
            return NO_PROBES
        probe = self.file.probe
        return plan_of(probe if isinstance(probe, str) else probe.model_dump(mode="json"), stored)

    def configured(self, values: Mapping[str, Any]) -> BaseModel:
        """Return the base with dotted fields replaced.

        Raises:
            pydantic.ValidationError: the values are not a valid configuration.
            Exception: the user's configuration class has raised it.
        """
        with user_code():
            return updated(self.base, values)

    def slots(self) -> list[tuple[str, dict[str, Any] | None]]:
        """Return the slots of the study, one for each trial of the budget, as (kind, fixed values); baselines come
        first.

        A slot is a row of the queue that workers lease. The values are None if the sampler chooses them.
        """
        path = seed_path(self.base) or ""
        if self.file.arms is not None:
            return [("arm", {**arm, path: seed}) for seed in self.file.seeds for arm in self.file.arms.values()]
        slots: list[tuple[str, dict[str, Any] | None]] = [("baseline", dict(b)) for b in self.file.baseline]
        slots += [("seed", {**self.file.first_baseline, path: seed}) for seed in self.noise_seeds()]
        points = self.file.sampler.combinations(self.base, self.file.space)
        # Without a limit on trials, there are enough slots that hours or tokens end the study first.
        n = (self.file.budget.trials or 10_000) - len(slots)
        if points is None:
            return slots + [("search", None)] * n
        return slots + [("search", points[i]) for i in range(min(n, len(points)))]

    def noise_seeds(self) -> list[int]:
        """Return the seeds of the repeated runs of the first baseline."""
        path = seed_path(self.base)
        if self.file.baseline_seeds < 2 or path is None:
            return []
        first = flat(self.configured(self.file.first_baseline))[path]
        return [first + i for i in range(1, self.file.baseline_seeds)]

    def spec(self) -> dict[str, Any]:
        """Return a description from which any worker can recreate the study, as JSON values."""
        tree: dict[str, Any] = self.file.model_dump(mode="json", exclude={"base"})
        derived = {"name": self.name, "rungs": self.rungs, "rung_tokens": self.rung_tokens}
        closed = closed_ends(self.base, self.file.space)
        return tree | {"base": self.base.model_dump(mode="json"), **derived, "closed": closed}


def seed_path(config: BaseModel) -> str | None:
    """Return the dotted field that holds the seed of a run, None if the configuration has no such field."""
    return next((path for path in SEED_FIELDS if path in flat(config)), None)

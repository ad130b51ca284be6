"""Compare samplers and pruners by simulated searches in several worlds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hpo.config.validation import explain_errors
from hpo.config.yaml import YamlError, parse_value
from hpo.errors import Problem
from hpo.replay.curves import Curves
from hpo.replay.measures import Record, record
from hpo.replay.simulation import Search, simulate
from hpo.replay.worlds import WORLDS, World
from hpo.search.pruners import NoPruning, Pruner
from hpo.search.sampler_config import SamplerConfig
from hpo.search.samplers import Random, Sampler
from model.section import Section

FOR_SAMPLERS = ("surrogate", "nearest")  # worlds that answer any configuration


class Rules(Section):
    """The rules of a simulated search. None: the trials of the world, in their order."""

    sampler: Sampler | None = None
    pruner: Pruner = NoPruning()

    @property
    def label(self) -> str:
        """The rules as a table shows them: names, and the fields that differ from their defaults."""
        return f"{_label(self.sampler)}, {_label(self.pruner)}" if self.sampler else _label(self.pruner)


@dataclass(frozen=True)
class Budget:
    """The length of each search: number of trials, or number of full runs whose tokens all trials together train."""

    trials: int | None
    runs: int | None
    workers: int
    seeds: int

    def search(self, rules: Rules, rungs: int) -> Search:
        """Return a search in a world whose runs have a number of rungs."""
        limit = None if self.runs is None else self.runs * rungs
        return Search(rules.sampler, rules.pruner, self.workers, self.trials, limit)


@dataclass(frozen=True)
class Compared:
    """The searches with one set of rules in one world, and those of random search without pruning there.

    budget: of the reference, in rungs.
    """

    world: World
    rules: Rules
    records: Sequence[Record]
    reference: Sequence[Record]
    budget: int


def parse_rules(samplers: Sequence[str], pruners: Sequence[str]) -> list[Rules]:
    """Return each combination of samplers and pruners, given as names or as YAML mappings with their fields.

    Raises:
        Problem: a name or a field is not valid.
    """
    wanted: Sequence[str | None] = list(samplers) or [None]
    given = [(sampler, pruner) for sampler in wanted for pruner in pruners]
    rules, problems = [], []
    for sampler, pruner in given:
        try:
            tree = {"pruner": _component(pruner)} | ({} if sampler is None else {"sampler": _component(sampler)})
            rules.append(Rules.model_validate(tree))
        except ValidationError as error:
            problems += [f"--{key}: {rule}" for key, rule in explain_errors(error, Rules)]
        except YamlError as error:
            problems.append(f"--pruner, --sampler: must be a name or a YAML mapping: {error}")
    if problems:
        raise Problem(*dict.fromkeys(problems))
    return rules


def _component(text: str) -> Any:
    value = parse_value(text)
    return {"name": value} if isinstance(value, str) else value


def _label(component: SamplerConfig | Section) -> str:
    fields = component.model_dump(exclude_defaults=True)
    fields.pop("name", None)
    shown = " ".join(f"{key}={value}" for key, value in fields.items())
    name = str(component.name)  # type: ignore[union-attr]
    return f"{name} ({shown})" if shown else name


def compare(curves: Curves, names: Sequence[str], rules: Sequence[Rules], budget: Budget) -> Iterator[Compared]:
    """Yield the searches with each set of rules in each world.

    names: of the worlds. A world that gives its trials ignores the samplers, and simulates each pruner once.
    """
    for name in names:
        world: World = WORLDS[name](curves)
        gives = name not in FOR_SAMPLERS
        applicable = list(dict.fromkeys(_without_sampler(one) for one in rules)) if gives else list(rules)
        seeds = 1 if name == "recorded" else budget.seeds
        # A pool ends by itself, so that a budget in tokens needs no limit of trials.
        most = len(curves.config) if name == "recorded" else len(curves.params)
        trials = min(budget.trials or most, most) if gives and budget.runs is None else budget.trials
        limit = Budget(trials, budget.runs, budget.workers, seeds)
        base = Rules(sampler=None if gives else Random(), pruner=NoPruning())
        total = (limit.runs or limit.trials or 1) * curves.rungs
        reference = _records(world, base, limit, 1 if name == "recorded" else max(seeds, 20))
        for one in applicable:
            yield Compared(world, one, _records(world, one, limit, seeds), reference, total)


def _without_sampler(rules: Rules) -> Rules:
    return rules.model_copy(update={"sampler": None})


def _records(world: World, rules: Rules, budget: Budget, seeds: int) -> list[Record]:
    search = budget.search(rules, world.curves.rungs)
    return [record(world, simulate(world, search, seed), seed) for seed in range(seeds)]

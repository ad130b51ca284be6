"""Arms: a study that compares given configurations on the same seeds, instead of searching a space.

Each arm is one configuration. Runs of different arms with the same seed form a pair.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from hpo.config.validation import error_messages
from hpo.errors import Problem
from hpo.search.pruners import NoPruning
from hpo.search.ranges import Choices
from hpo.search.samplers import Random
from hpo.study.comparable import incomparable_fields, training_lengths
from hpo.study.seeds import seed_remedy
from hpo.study.spec import DEFAULT_CONFIG, SEARCH_KEYS, Study, StudyFile, seed_path
from model.section import flat, updated

Equal = Literal["tokens", "updates", "seconds"]
_KINDS = (bool, int, float, str, type(None))  # types that Optuna can store as a categorical choice


@dataclass(frozen=True)
class ArmsPlan:
    """The arms and seeds of a comparison.

    source: the command that makes the comparison, for messages. arms: name -> fields that differ from the base.
    about: see `StudyFile.about`.
    """

    source: str
    arms: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    about: Mapping[str, Any]
    equal: Equal = "tokens"


def configs_of_arms(file: StudyFile, base: BaseModel) -> dict[str, BaseModel]:
    """Return the configuration of each arm.

    Raises:
        pydantic.ValidationError: an arm is not a valid configuration.
    """
    return {name: updated(base, values) for name, values in (file.arms or {}).items()}


def with_arms_as_space(file: StudyFile, base: BaseModel) -> StudyFile:
    """Return a study file of arms with the keys of a search: one trial for each arm and seed, and no pruning.

    The space contains the fields in which the arms differ, so that Optuna and its dashboard show them as parameters.
    """
    path = seed_path(base) or ""
    arms = (file.arms or {}).values()
    choices: dict[str, list[Any]] = {}
    for config in configs_of_arms(file, base).values():
        fields = flat(config)
        for key in {key for values in arms for key in values}:
            if key in fields and type(fields[key]) in _KINDS and fields[key] not in choices.setdefault(key, []):
                choices[key].append(fields[key])
    space = {key: Choices(choices=tuple(values)) for key, values in sorted(choices.items()) if len(values) > 1}
    return file.model_copy(
        update={
            "space": {**space, path: Choices(choices=file.seeds)},
            "baseline": (),
            "sampler": Random(),
            "pruner": NoPruning(),
            "budget": file.budget.model_copy(update={"trials": len(arms) * len(file.seeds)}),
        }
    )


def with_common_rungs(file: StudyFile, base: BaseModel) -> BaseModel:
    """Return the base with the rungs of the arms. A run ends at the last rung.

    With `equal: tokens`, the marks of the rungs are rounded so that all arms reach them exactly, if possible.
    """
    if file.config != DEFAULT_CONFIG:
        return base
    configs = configs_of_arms(file, base)
    base = updated(base, {"run.rungs": flat(next(iter(configs.values())))["run.rungs"]})
    return updated(base, {"run.align": common_alignment(configs.values())}) if file.equal == "tokens" else base


def plan_study(like: Study, name: str, base: BaseModel, plan: ArmsPlan) -> Study:
    """Return a study of arms that otherwise has the settings of another study.

    like: the other study. base: the configuration from which the arms differ.

    Raises:
        Problem: the arms do not form a valid study.
    """
    seed = seed_path(base)
    arms = {n: {k: v for k, v in values.items() if k != seed} for n, values in plan.arms.items()}
    budget = like.file.budget.model_copy(update={"hours": None, "tokens": None, "target": None})
    file = like.file.model_copy(
        update={"arms": arms, "seeds": tuple(plan.seeds), "about": dict(plan.about), "equal": plan.equal}
        | {
            "limits": like.file.limits.model_copy(update={"seconds": None})
        }  # these runs may be longer than those of the search
        | {"baseline_seeds": 1, "targets": {}, "milestones": {}, "keep_best": 0, "budget": budget}
    )
    if problems := arms_problems(file, base, ()):
        raise Problem(*(f"{plan.source}: {line}" for line in problems))
    base = with_common_rungs(file, base)
    return Study(name, plan.source, with_arms_as_space(file, base), base)


def common_alignment(configs: Iterable[BaseModel]) -> int:
    """Return the number of tokens to whose multiples the marks of rungs are rounded, so that all runs reach them
    exactly.

    This number is a common multiple of the tokens of an update of each run. run.align of the first configuration is
    used if it is such a multiple, else the least one. If the least one is longer than a rung, the result is 1: each
    run then reports at its first update past a mark.
    """
    configs = list(configs)
    requested = flat(configs[0])["run.align"]
    configs = [updated(config, {"run.align": 1}) for config in configs]
    common = math.lcm(*(config.update_tokens() for config in configs))  # type: ignore[attr-defined]
    if requested > 1 and requested % common == 0:
        return int(requested)
    spacing = min(flat(config)["run.tokens"] // flat(config)["run.rungs"] for config in configs)
    return common if common <= spacing else 1


def arms_problems(file: StudyFile, base: BaseModel, given: Iterable[str]) -> list[str]:
    """Return the problems of a study file of arms.

    given: the keys that the file contains.
    """
    problems = [f"{key}: must be omitted with arms, because only the arms run" for key in SEARCH_KEYS if key in given]
    if "arms" in given and len(file.arms or {}) < 2:
        problems.append(f"arms: must have at least 2 arms to compare, got {len(file.arms or {})}")
    path = seed_path(base)
    if path is None:
        return [
            *problems,
            f"arms: must be used with {seed_remedy(file)}, in which the runs of an arm differ",
        ]
    if not file.seeds:
        problems.append("seeds: required with arms, for example [1, 2, 3]; each arm runs with each seed")
    problems += [
        f"seeds: must be distinct, got {s} twice; remove one of them"
        for s in sorted(set(file.seeds))
        if file.seeds.count(s) > 1
    ]
    if file.budget.trials is not None and "budget" in given:
        n = len(file.arms or {}) * len(file.seeds)
        if file.budget.trials != n:
            problems.append(f"budget.trials: must be omitted with arms, because their {n} runs are the budget")
    return problems + _arm_problems(file, base, path)


def _arm_problems(file: StudyFile, base: BaseModel, seed: str) -> list[str]:
    problems = []
    for name, values in (file.arms or {}).items():
        if seed in values:
            problems.append(
                f"arms.{name}.{seed}: must be omitted, because all arms have the same seeds; use the key seeds"
            )
        try:
            updated(base, values)
        except ValidationError as error:
            problems += error_messages(error, type(base), f"arms.{name}")
    if problems:
        return problems
    configs = configs_of_arms(file, with_common_rungs(file, base))
    first, *others = configs
    for name in others:
        same = next((n for n in configs if n != name and configs[n] == configs[name]), None)
        if same is not None and list(configs).index(same) < list(configs).index(name):
            problems.append(f"arms.{name}: must differ from every other arm, got the configuration of {same}")
        if file.config == DEFAULT_CONFIG:
            problems += _incomparable(file, name, configs[name], configs[first])
        elif file.equal == "tokens" and (lengths := [_length(configs[n]) for n in (name, first)])[0] != lengths[1]:
            problems.append(_unequal(name, "tokens per rung", *lengths))
    return problems


def _incomparable(file: StudyFile, name: str, config: Any, first: Any) -> list[str]:
    """Return the problems of an arm whose losses cannot be compared with those of the first arm."""
    fields, first_fields = flat(config), flat(first)
    reasons = incomparable_fields(config, first, file.objective)
    problems = [
        f"arms.{name}.{path}: must be the same as in the first arm, because losses on different data cannot be "
        f"compared, got {fields.get(path)!r} and {first_fields.get(path)!r}"
        for path, why in sorted(reasons.items())
        if why == "data"
    ]
    if "tokenizers" in reasons.values():
        problems.append(
            f"objective: must be val_bpb, because arms.{name} has a different tokenizer, got {file.objective}"
        )
    if "run.rungs" in reasons:
        problems.append(f"arms.{name}.run.rungs: must be the same as in the first arm, {first_fields['run.rungs']}")
    if lengths := training_lengths(config, first, file.equal):
        problems.append(_unequal(name, file.equal, *lengths))
    return problems


def _unequal(name: str, what: str, one: float, other: float) -> str:
    return (
        f"arms.{name}: must train for as many {what} as the first arm, {other:,}, because runs with different lengths "
        f"cannot be compared; got {one:,}"
    )


def _length(config: BaseModel) -> float:
    """Return the number of tokens between two rungs, 0 if the configuration does not count tokens."""
    measure = getattr(config, "rung_tokens", None)
    return float(measure()) if measure else 0.0


def find_arm(file: StudyFile, values: Mapping[str, Any], seed: str) -> str | None:
    """Return the name of the arm with these values, None if there is none.

    seed: dotted field of the seed, which is ignored.
    """
    own = {key: value for key, value in values.items() if key != seed}
    return next((name for name, arm in (file.arms or {}).items() if arm == own), None)

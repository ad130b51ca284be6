"""Arms: a study that runs given configurations on the same seeds, instead of searching a space."""

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
from hpo.study.spec import DEFAULT_CONFIG, SEARCH_KEYS, Study, StudyFile, seed_path
from model.section import flat, updated

Equal = Literal["tokens", "updates", "seconds"]
_KINDS = (bool, int, float, str, type(None))  # of value that Optuna holds in a list of choices


@dataclass(frozen=True)
class ArmsPlan:
    """What a comparison is made of; source: what made it, for messages."""

    source: str
    arms: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    about: Mapping[str, Any]
    equal: Equal = "tokens"


def configs_of_arms(file: StudyFile, base: BaseModel) -> dict[str, BaseModel]:
    """Return the configuration of each arm.

    Raises:
        pydantic.ValidationError: an arm is none.
    """
    return {name: updated(base, values) for name, values in (file.arms or {}).items()}


def with_arms_as_space(file: StudyFile, base: BaseModel) -> StudyFile:
    """Return a file of arms with what a search says otherwise: one trial for each arm and seed, none of them pruned.

    Its space holds the fields that the arms give, so that Optuna and its dashboard show what they differ in.
    """
    path = seed_path(base) or ""
    given = (file.arms or {}).values()
    found: dict[str, list[Any]] = {}
    for config in configs_of_arms(file, base).values():
        fields = flat(config)
        for key in {key for values in given for key in values}:
            if key in fields and type(fields[key]) in _KINDS and fields[key] not in found.setdefault(key, []):
                found[key].append(fields[key])
    space = {key: Choices(choices=tuple(values)) for key, values in sorted(found.items()) if len(values) > 1}
    return file.model_copy(
        update={
            "space": {**space, path: Choices(choices=file.seeds)},
            "baseline": (),
            "sampler": Random(),
            "pruner": NoPruning(),
            "budget": file.budget.model_copy(update={"trials": len(given) * len(file.seeds)}),
        }
    )


def with_common_rungs(file: StudyFile, base: BaseModel) -> BaseModel:
    """Return the base with the rungs of the arms, at the last of which a study ends its runs.

    Arms that are trained on equally many tokens reach its marks exactly.
    """
    if file.config != DEFAULT_CONFIG:
        return base
    configs = configs_of_arms(file, base)
    base = updated(base, {"run.rungs": flat(next(iter(configs.values())))["run.rungs"]})
    return updated(base, {"run.align": common_alignment(configs.values())}) if file.equal == "tokens" else base


def plan_study(like: Study, name: str, base: BaseModel, compared: ArmsPlan) -> Study:
    """Return a study that runs arms over a base, in all else like another study.

    Raises:
        Problem: the arms cannot be compared.
    """
    seed = seed_path(base)
    wanted = {n: {k: v for k, v in values.items() if k != seed} for n, values in compared.arms.items()}
    budget = like.file.budget.model_copy(update={"hours": None, "tokens": None, "target": None})
    file = like.file.model_copy(
        update={"arms": wanted, "seeds": tuple(compared.seeds), "about": dict(compared.about), "equal": compared.equal}
        | {"limits": like.file.limits.model_copy(update={"seconds": None})}  # runs may be longer than those of a search
        | {"baseline_seeds": 1, "targets": {}, "milestones": {}, "keep_best": 0, "budget": budget}
    )
    if found := arms_problems(file, base, ()):
        raise Problem(*(f"{compared.source}: {line}" for line in found))
    base = with_common_rungs(file, base)
    return Study(name, compared.source, with_arms_as_space(file, base), base)


def common_alignment(configs: Iterable[BaseModel]) -> int:
    """Return the multiple of tokens that rung marks are rounded to, so that all runs reach them exactly.

    That which the first one asks for, where it is one. 1, which has each run scored at its first update past a mark,
    where that multiple is longer than a rung.
    """
    configs = list(configs)
    asked = flat(configs[0])["run.align"]
    configs = [updated(config, {"run.align": 1}) for config in configs]
    common = math.lcm(*(config.update_tokens() for config in configs))  # type: ignore[attr-defined]
    if asked > 1 and asked % common == 0:
        return int(asked)
    spacing = min(flat(config)["run.tokens"] // flat(config)["run.rungs"] for config in configs)
    return common if common <= spacing else 1


def arms_problems(file: StudyFile, base: BaseModel, given: Iterable[str]) -> list[str]:
    """Return what is wrong with a file of arms.

    given: the keys that the file has.
    """
    found = [f"{key}: must be left out with arms, which are all that is run" for key in SEARCH_KEYS if key in given]
    if "arms" in given and len(file.arms or {}) < 2:
        found.append(f"arms: must have at least 2, or there is nothing to compare, got {len(file.arms or {})}")
    path = seed_path(base)
    if path is None:
        return [*found, "arms: needs a config with a field run.seed or seed, which tells the runs of an arm apart"]
    if not file.seeds:
        found.append("seeds: required with arms: each arm is run with each of them, such as [1, 2, 3]")
    found += [f"seeds: must be distinct, got {s} twice" for s in sorted(set(file.seeds)) if file.seeds.count(s) > 1]
    if file.budget.trials is not None and "budget" in given:
        n = len(file.arms or {}) * len(file.seeds)
        if file.budget.trials != n:
            found.append(f"budget.trials: must be left out with arms: their {n} runs are the budget")
    return found + _arm_problems(file, base, path)


def _arm_problems(file: StudyFile, base: BaseModel, seed: str) -> list[str]:
    found = []
    for name, values in (file.arms or {}).items():
        if seed in values:
            found.append(f"arms.{name}.{seed}: must be left out; `seeds` gives all arms the same")
        try:
            updated(base, values)
        except ValidationError as error:
            found += error_messages(error, type(base), f"arms.{name}")
    if found:
        return found
    configs = configs_of_arms(file, with_common_rungs(file, base))
    first, *others = configs
    for name in others:
        same = next((n for n in configs if n != name and configs[n] == configs[name]), None)
        if same is not None and list(configs).index(same) < list(configs).index(name):
            found.append(f"arms.{name}: must differ from every other arm, is the same as {same}")
        if file.config == DEFAULT_CONFIG:
            found += _incomparable(file, name, configs[name], configs[first])
        elif file.equal == "tokens" and (lengths := [_length(configs[n]) for n in (name, first)])[0] != lengths[1]:
            found.append(_unequal(name, "tokens a rung", *lengths))
    return found


def _incomparable(file: StudyFile, name: str, config: Any, first: Any) -> list[str]:
    """Return the problems of an arm whose losses cannot be compared with those of the first arm."""
    fields, first_fields = flat(config), flat(first)
    reasons = incomparable_fields(config, first, file.objective)
    problems = [
        f"arms.{name}.{path}: must be that of the first arm, because losses on different data cannot be compared, "
        f"got {fields.get(path)!r} and {first_fields.get(path)!r}"
        for path, why in sorted(reasons.items())
        if why == "data"
    ]
    if "tokenizers" in reasons.values():
        problems.append(f"objective: must be val_bpb, because arms.{name} has another tokenizer, got {file.objective}")
    if "run.rungs" in reasons:
        problems.append(f"arms.{name}.run.rungs: must be that of the first arm, {first_fields['run.rungs']}")
    if lengths := training_lengths(config, first, file.equal):
        problems.append(_unequal(name, file.equal, *lengths))
    return problems


def _unequal(name: str, what: str, one: float, other: float) -> str:
    return (
        f"arms.{name}: must be trained on as many {what} as the first arm, {other:,}, got {one:,}; runs of "
        "different lengths cannot be compared"
    )


def _length(config: BaseModel) -> float:
    """Return the tokens between two rungs of a configuration of the user's own, 0 where it counts none."""
    measure = getattr(config, "rung_tokens", None)
    return float(measure()) if measure else 0.0


def find_arm(file: StudyFile, values: Mapping[str, Any], seed: str) -> str | None:
    """Return the name of the arm whose values these are, seed aside; None for no arm."""
    own = {key: value for key, value in values.items() if key != seed}
    return next((name for name, arm in (file.arms or {}).items() if arm == own), None)

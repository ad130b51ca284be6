"""Check that the values of a study file fit together, after the keys and types of the file are found valid."""

from pydantic import BaseModel, ValidationError

from hpo.config.files import dotted_fields
from hpo.config.importer import import_target
from hpo.config.validation import error_messages, nearest, shown_value, union_members
from hpo.errors import Problem
from hpo.search.probe_config import Probes
from hpo.search.probes import compared_rungs, plan_of
from hpo.search.space import space_problems
from hpo.study.comparable import incomparable_reason
from hpo.study.objectives import COSTS
from hpo.study.seeds import seed_remedy
from hpo.study.spec import DEFAULT_CONFIG, DEFAULT_TRAIN, StudyFile, seed_path
from model.config import TrainConfig
from model.section import flat, updated

OBJECTIVES = ("val_loss", "val_bpb", "ema_val_loss", "ema_val_bpb")

MAX_BASELINES = 1_000  # runs of baselines, if budget.trials is not set


# Trials of a study, each of which is a row of the queue from the start. Also the largest number of values of one range.
MAX_TRIALS = 1_000_000


def study_file_problems(file: StudyFile, base: BaseModel) -> list[str]:
    """Return the problems of a study file whose keys and types are valid."""
    problems = space_problems(base, file.space) if file.arms is None else []
    problems = _form_problems(file, base) or problems
    problems += _incomparable_problems(file)
    for i, values in enumerate(file.baseline if file.arms is None else ()):
        problems += [
            f"baseline.{i}.{key}: must be a dotted field, such as {key}.{next(iter(value), 'name')}, got a mapping"
            for key, value in values.items()
            if isinstance(value, dict) and isinstance(getattr(base, key, None), BaseModel)
        ]
        try:
            updated(base, values)
        except ValidationError as error:
            problems += error_messages(error, type(base), f"baseline.{i}")
    problems += _baseline_problems(file, base) if file.arms is None else []
    problems += _token_problems(file, base)
    problems += _size_problems(file)
    problems += _target_problems(file) + _probe_problems(file, base)
    if not problems and file.arms is None:
        problems += file.sampler.problems(base, file.space) or _grid_problems(file, base)
    return problems + _objective_problems(file, base) + _training_problems(file, base)


def _form_problems(file: StudyFile, base: BaseModel) -> list[str]:
    """Return the fields that a study file gives in two forms, such as beta2 and beta2_half_life."""
    own = dotted_fields({key: value for key, value in file.base.items() if key != "from"}, base)
    given = {path: f"base.{path}" for path, value in own.items() if value is not None}
    given |= {path: f"space.{path}" for path in file.space}
    problems = []
    for key, field in type(base).model_fields.items():
        for kind in union_members(field.annotation):
            for raw, other in getattr(kind, "forms", {}).items():
                one, two = given.get(f"{key}.{raw}"), given.get(f"{key}.{other}")
                if one and two:
                    problems.append(f"{one}: must be left out, because {raw} follows from {two}; remove one of them")
    return list(dict.fromkeys(problems))


def _averages_weights(base: BaseModel) -> bool:
    return isinstance(base, TrainConfig) and base.regularization.has_average()


def _baseline_problems(file: StudyFile, base: BaseModel) -> list[str]:
    n, seed = len(file.baseline) + file.baseline_seeds - 1, seed_path(base)
    problems = []
    if file.budget.trials is not None and file.budget.trials < n:
        problems.append(f"budget.trials: must be at least {n}, {_one_for_each(file)}, got {file.budget.trials}")
    if file.baseline_seeds > 1 and not file.baseline:
        problems.append("baseline_seeds: must be used with a baseline, whose noise it measures")
    if file.baseline_seeds > 1 and seed is None:
        problems.append(f"baseline_seeds: must be used with {seed_remedy(file)}")
    if file.baseline_seeds > 1 and seed is not None and type(flat(base)[seed]) is not int:
        problems.append(
            f"baseline_seeds: must be used with a whole number in {seed} of the base, got {flat(base)[seed]!r}"
        )
    if n > MAX_BASELINES and file.budget.trials is None:
        problems.append(
            f"baseline_seeds: must be at most {MAX_BASELINES - len(file.baseline)}, got {file.baseline_seeds}"
        )
    if file.baseline_seeds > 1 and seed in file.space:
        problems.append(f"baseline_seeds: must be omitted, because {seed} is searched")
    return problems


def _one_for_each(file: StudyFile) -> str:
    return "one for each baseline" + (" and each of baseline_seeds" if file.baseline_seeds > 1 else "")


def _token_problems(file: StudyFile, base: BaseModel) -> list[str]:
    tokens, rung_tokens = file.budget.tokens, getattr(base, "rung_tokens", None)
    if tokens is None:
        return []
    if rung_tokens is None:
        return ["budget.tokens: must be used with a config that has a method rung_tokens(); use trials or hours"]
    rungs = int(file.rungs or flat(base)["run.rungs"])
    plan = plan_of(file.probe.model_dump(mode="json"), None) if isinstance(file.probe, Probes) else None
    run = round(rung_tokens() * (rungs + (plan.cost_until(rungs, rungs) if plan else 0)))
    n = 1 if file.arms is not None else max(1, len(file.baseline) + file.baseline_seeds - 1)
    if tokens >= n * run:
        return []
    what = "one run" if n == 1 else f"{n} runs, {_one_for_each(file)}"
    return [f"budget.tokens: must be at least {n * run}, the length of {what}, got {tokens}"]


def _size_problems(file: StudyFile) -> list[str]:
    """Return the problems of numbers that would create a list too large for memory."""
    sizes = {"budget.trials": file.budget.trials, "sampler.points": getattr(file.sampler, "points", None)}
    return [
        f"{key}: must be at most {MAX_TRIALS:,}, got {shown_value(size)}"
        for key, size in sizes.items()
        if size is not None and size > MAX_TRIALS
    ]


def _target_problems(file: StudyFile) -> list[str]:
    """Return the problems of the target that ends the study."""
    target = file.budget.target
    if target is None:
        return []
    if file.arms is not None:
        return ["budget.target: must be omitted with arms, because all their runs are compared"]
    if not file.targets:
        return [f"budget.target: must be used with targets, for example targets: {{{target}: 1.9}}"]
    known = ", ".join(map(repr, file.targets))
    like = nearest(target, file.targets)
    return (
        []
        if target in file.targets
        else [f"budget.target: must be one of targets, {known}, got {shown_value(target)}{like}"]
    )


def _probe_problems(file: StudyFile, base: BaseModel) -> list[str]:
    """Return the problems of cool-down probes."""
    probe = file.probe
    if not isinstance(probe, Probes):
        return []
    if (file.train, file.config) != (DEFAULT_TRAIN, DEFAULT_CONFIG):
        return ["probe: must be off or omitted with a training function of your own, which hpo cannot probe"]
    rungs, last = int(flat(base)["run.rungs"]), max(probe.rungs)
    given = ", ".join(map(str, probe.rungs))
    if last >= rungs:
        return [f"probe.rungs: must be below {rungs}, the last rung of a run, got {given}"]
    if len(set(probe.rungs)) < len(probe.rungs):
        return [f"probe.rungs: must be distinct, got {given}"]
    if probe.share > (longest := 1 - last / rungs) + 1e-9:
        return [
            f"probe.share: must be at most {longest:.3g}, what is left of a run after rung {last}, got "
            f"{probe.share:g}; use a shorter probe, or earlier rungs"
        ]
    compared = compared_rungs(file.pruner.model_dump(mode="json"), rungs)
    if compared and not set(compared) & set(probe.rungs):
        known = ", ".join(map(str, compared[:8])) + (", ..." if compared[8:] else "")
        return [
            f"probe.rungs: must contain a rung at which pruner {file.pruner.name} may stop a trial ({known}), got "
            f"{given}; it stops trials only at probed rungs"
        ]
    return []


def _grid_problems(file: StudyFile, base: BaseModel) -> list[str]:
    try:
        len(file.sampler.combinations(base, file.space) or ())
    except OverflowError:  # more than 2**63 combinations
        return [f"space: must have fewer combinations, because sampler {file.sampler.name} tries every one"]
    return []


def _objective_problems(file: StudyFile, base: BaseModel) -> list[str]:
    if file.arms is not None and file.objectives:
        return [f"objective: must be one name in a study of arms, got {', '.join(file.objectives)}"]
    known = (*OBJECTIVES, *COSTS)
    if file.config == DEFAULT_CONFIG and (wrong := [name for name in file.objectives[1:] if name not in known]):
        return [f"objective: must list only {', '.join(map(repr, known))}, got {', '.join(map(shown_value, wrong))}"]
    if file.direction == "maximize" and file.config == DEFAULT_CONFIG:
        return [f"direction: must be minimize, because {shown_value(file.objective)} of the GPT trainer is a loss"]
    if file.direction == "maximize" and file.train == DEFAULT_TRAIN:
        return ["direction: must be minimize, unless train is your own training function"]
    if file.config != DEFAULT_CONFIG:
        return []
    if file.objective not in OBJECTIVES:
        return [f"objective: must be one of {', '.join(map(repr, OBJECTIVES))}, got {shown_value(file.objective)}"]
    if file.objective.startswith("ema_") and not _averages_weights(base):
        return [
            "objective: must be used with regularization.ema or regularization.ema_half_life in the base, "
            f"got {file.objective}"
        ]
    return []


def _incomparable_problems(file: StudyFile) -> list[str]:
    """Return the problems of a space whose fields would make trials incomparable."""
    if file.config != DEFAULT_CONFIG:
        return []
    reasons = {path: incomparable_reason(path, file.objective) for path in file.space}
    tokenizer = next((path for path, why in reasons.items() if why == "tokenizers"), None)
    problems = [
        f"space.{path}: must not be searched, because trials with different {why} cannot be compared"
        for path, why in reasons.items()
        if why not in ("", "tokenizers")
    ]
    if tokenizer is not None:
        problems.append(
            f"objective: must be val_bpb, because {tokenizer} is searched and nats per token of different tokenizers "
            f"cannot be compared, got {file.objective}"
        )
    return problems


def _training_problems(file: StudyFile, base: BaseModel) -> list[str]:
    if file.command is not None:
        return []
    own = flat(base).get("run.rungs")
    if file.rungs is None and own is None:
        return [
            "rungs: required with a config that has no field run.rungs; set the number of values that a run reports"
        ]
    if own is not None and file.rungs not in (None, own):
        return [f"rungs: must be omitted, because run.rungs of the base is {own}, got {file.rungs}"]
    try:
        train = import_target(file.train, "train") if file.train != DEFAULT_TRAIN else None
    except Problem as problem:
        return list(problem.lines)
    if train is not None and not callable(train):
        return [f"train: must be callable, got {file.train}"]
    kind = flat(base).get("model.parametrization", "standard")
    if train is not None and file.config == DEFAULT_CONFIG and kind != "standard":
        return [f"base.model.parametrization: must be standard with a training function of your own, got {kind}"]
    return []

"""Study files, found, read and checked, all problems together, before anything runs."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hpo.config import files as bases
from hpo.config import yaml as notation
from hpo.config.discovery import find, is_ledger
from hpo.config.importer import imported, model_class
from hpo.config.validation import explain, got, messages, nearest, nearest_path
from hpo.errors import Problem
from hpo.search.ranges import Space, discrete
from hpo.search.space import check
from hpo.study import arms
from hpo.study.spec import DEFAULT_CONFIG, DEFAULT_TRAIN, Study, StudyFile, seed_path
from model.data.corpus_base import TRAINING
from model.section import flat, updated

M = TypeVar("M", bound=BaseModel)

OBJECTIVES = ("val_loss", "val_bpb", "ema_val_loss", "ema_val_bpb")
MOST_BASELINES = 1_000  # runs of baselines, where nothing else bounds the trials
MOST = 1_000_000  # trials of a study, each of which is a row from the start, or points of one range
# Trials of one study must be comparable: what they are measured over is not searched.
FIXED = {"run.tokens": "lengths", "run.rungs": "rungs", "run.align": "rungs"}


def read(
    study: str, overrides: Sequence[str] = (), budget: Mapping[str, Any] | None = None, seed: int | None = None
) -> Study:
    """Read and check a study file.

    overrides: path=value, in the base. budget: replaces those of the file's keys that are not None.

    Raises:
        Problem: naming everything that is wrong.
    """
    path = find(study)
    if is_ledger(path):
        raise Problem(f"{path}: is a ledger of claims, not a study; `hpo check {study}` validates it")
    tree = _tree(path)
    asked = {key: value for key, value in (budget or {}).items() if value is not None}
    if asked and isinstance(tree.get("budget", {}), dict):
        tree["budget"] = {**tree.get("budget", {}), **asked}
    if seed is not None:
        tree["seed"] = seed
    try:
        file = StudyFile.model_validate(tree)
    except ValidationError as error:
        raise Problem(*(f"{path}: {line}" for line in messages(error, StudyFile))) from None
    base = _base(path, file, overrides)
    found = arms.problems(file, base, tree) if file.arms is not None else []
    problems = [f"{path}: {line}" for line in found or _problems(file, base)]
    if problems:
        raise Problem(*problems)
    if file.arms is not None:
        base = arms.aligned(file, base)
        file = arms.arranged(file, base)
    return Study(path.stem, str(path), file, base)


def assignments(overrides: Sequence[str]) -> dict[str, Any]:
    """Return --set path=value pairs as a mapping.

    Raises:
        Problem: one has no =.
    """
    values = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(part.isidentifier() for part in path.strip().split(".")):
            raise Problem(f"--set: must be path=value, such as optimizer.lr=3e-4, got {override!r}")
        values[path.strip()] = notation.value(text)
    return values


def overridden(config: M, overrides: Sequence[str]) -> M:
    """Return a configuration with --set path=value pairs in place.

    Raises:
        Problem: one has no =, or the result is not a configuration.
    """
    values = assignments(overrides)
    try:
        found = updated(config, values)
    except ValidationError as error:
        problems = explain(error, type(config))
        raise Problem(*(f"--set {key}: {rule}" if key else f"--set: {rule}" for key, rule in problems)) from None
    # A class of the user's own may drop what it does not know without a word.
    dropped = [path for path in values if not found.model_extra and not _is_field(path, flat(found))]
    if dropped:
        raise Problem(*(f"--set {path}: no such field{nearest_path(path, flat(found))}" for path in dropped))
    return found


def _is_field(path: str, fields: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{field}.") or field.startswith(f"{path}.") for field in fields)


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = notation.load(path.read_text("utf-8"))
    except notation.NotationError as error:
        raise Problem(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise Problem(f"{path}: must be text in UTF-8, got other bytes") from None
    except OSError as error:
        raise Problem(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(tree, dict):
        got = {list: "a list", type(None): "nothing"}.get(type(tree), repr(tree)[:40])
        raise Problem(f"{path}: must be a mapping with the keys {', '.join(StudyFile.model_fields)}, got {got}")
    return tree


def _base(path: Path, file: StudyFile, overrides: Sequence[str]) -> BaseModel:
    """Return the base configuration, overrides in place, rung marks aligned for the whole space."""
    try:
        kind = model_class(file.config, "config")
        base = bases.resolved(file.base, kind)
    except Problem as problem:
        raise Problem(*(f"{path}: {line}" for line in problem.lines)) from None
    except ValidationError as error:
        raise Problem(*(f"{path}: {line}" for line in messages(error, kind, "base"))) from None
    base = overridden(base, overrides)
    if file.config != DEFAULT_CONFIG:
        return base
    base = updated(base, _absolute(flat(base)))  # workers may be started in another folder
    return updated(base, {"run.align": align(base, file.space)})


def _absolute(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the path of the text as it reads from any folder; owner/name on a hub is none."""
    path = fields.get("data.path")
    if path is None or (fields["data.name"] == "hub" and not Path(path).is_dir()):
        return {}
    return {"data.path": str(Path(path).absolute())}


def align(base: BaseModel, space: Space) -> int:
    """Return the multiple that rung marks are rounded to, so that every trial reaches them exactly.

    It is the least common multiple of the update sizes that the space allows; 1, which has each trial scored at
    its first update past a mark, where that multiple is longer than a rung.
    """
    factors = []
    for path in ("run.batch_size", "run.grad_accum", "model.context"):
        entry = space.get(path)
        values = discrete(entry, int) if entry else [flat(base)[path]]
        # not len(), which fails for a range of more than 2**63 values
        if not values or values[1000:] or not all(isinstance(v, int) and v > 0 for v in values):
            return 1
        factors.append(values)
    spacing = flat(base)["run.tokens"] / flat(base)["run.rungs"]
    common = 1
    for combination in itertools.product(*factors):
        common = math.lcm(common, math.prod(combination))
        if common > spacing:
            return 1
    return common


def _problems(file: StudyFile, base: BaseModel) -> list[str]:
    """Return what is wrong with a file whose keys are right."""
    problems = check(base, file.space) if file.arms is None else []
    problems += [
        f"space.{path}: must not be searched, since trials of different {why} cannot be compared"
        for path, why in FIXED.items()
        if path in file.space and file.config == DEFAULT_CONFIG
    ]
    for i, values in enumerate(file.baseline if file.arms is None else ()):
        problems += [
            f"baseline.{i}.{key}: must be a dotted field, such as {key}.{next(iter(value), 'name')}, got a mapping"
            for key, value in values.items()
            if isinstance(value, dict) and isinstance(getattr(base, key, None), BaseModel)
        ]
        try:
            updated(base, values)
        except ValidationError as error:
            problems += messages(error, type(base), f"baseline.{i}")
    problems += _baseline_problems(file, base) if file.arms is None else []
    problems += _token_problems(file, base)
    problems += _size_problems(file)
    problems += _aim_problems(file)
    if not problems and file.arms is None:
        problems += file.sampler.problems(base, file.space) or _grid_problems(file, base)
    return problems + _objective_problems(file, base) + _plug_problems(file, base)


def _baseline_problems(file: StudyFile, base: BaseModel) -> list[str]:
    n, seed = len(file.baseline) + file.baseline_seeds - 1, seed_path(base)
    problems = []
    if file.budget.trials is not None and file.budget.trials < n:
        problems.append(f"budget.trials: must be at least {n}, {_each(file)}, got {file.budget.trials}")
    if file.baseline_seeds > 1 and not file.baseline:
        problems.append("baseline_seeds: needs a baseline, whose noise it measures")
    if file.baseline_seeds > 1 and seed is None:
        problems.append("baseline_seeds: needs a config with a field run.seed or seed")
    if file.baseline_seeds > 1 and seed is not None and type(flat(base)[seed]) is not int:
        problems.append(f"baseline_seeds: needs a whole number in {seed} of the base, got {flat(base)[seed]!r}")
    if n > MOST_BASELINES and file.budget.trials is None:
        problems.append(
            f"baseline_seeds: must be at most {MOST_BASELINES - len(file.baseline)}, got {file.baseline_seeds}"
        )
    if file.baseline_seeds > 1 and seed in file.space:
        problems.append(f"baseline_seeds: must be left out, since {seed} is searched")
    return problems


def _each(file: StudyFile) -> str:
    return "one for each baseline" + (" and each of baseline_seeds" if file.baseline_seeds > 1 else "")


def _token_problems(file: StudyFile, base: BaseModel) -> list[str]:
    tokens, rung_tokens = file.budget.tokens, getattr(base, "rung_tokens", None)
    if tokens is None:
        return []
    if rung_tokens is None:
        return ["budget.tokens: needs a config that counts tokens, with a method rung_tokens(); give trials or hours"]
    run = round(rung_tokens() * (file.rungs or flat(base)["run.rungs"]))
    n = 1 if file.arms is not None else max(1, len(file.baseline) + file.baseline_seeds - 1)
    if tokens >= n * run:
        return []
    what = "one run" if n == 1 else f"{n} runs, {_each(file)}"
    return [f"budget.tokens: must be at least {n * run}, the length of {what}, got {tokens}"]


def _size_problems(file: StudyFile) -> list[str]:
    """Return which numbers would have a list made that no memory holds."""
    sizes = {"budget.trials": file.budget.trials, "sampler.points": getattr(file.sampler, "points", None)}
    return [
        f"{key}: must be at most {MOST:,}, got {got(size)}"
        for key, size in sizes.items()
        if size is not None and size > MOST
    ]


def _aim_problems(file: StudyFile) -> list[str]:
    """Return what is wrong with the target that ends the study."""
    target = file.budget.target
    if target is None:
        return []
    if file.arms is not None:
        return ["budget.target: must be left out with arms, all of whose runs are compared"]
    if not file.targets:
        return [f"budget.target: needs targets, such as targets: {{{target}: 1.9}}"]
    known = ", ".join(map(repr, file.targets))
    like = nearest(target, file.targets)
    return (
        [] if target in file.targets else [f"budget.target: must be one of targets, {known}, got {got(target)}{like}"]
    )


def _grid_problems(file: StudyFile, base: BaseModel) -> list[str]:
    try:
        len(file.sampler.combinations(base, file.space) or ())
    except OverflowError:  # there are more than 2**63
        return [f"space: must have fewer combinations, of which sampler {file.sampler.name} would try each"]
    return []


def _objective_problems(file: StudyFile, base: BaseModel) -> list[str]:
    if file.config != DEFAULT_CONFIG:
        return []
    if file.objective not in OBJECTIVES:
        return [f"objective: must be one of {', '.join(map(repr, OBJECTIVES))}, got {got(file.objective)}"]
    if file.objective.startswith("ema_") and flat(base)["regularization.ema"] is None:
        return [f"objective: needs regularization.ema in the base, which keeps the average, got {file.objective}"]
    free = {f"data.{field}" for field in TRAINING}
    varied = [path for path in file.space if path.startswith(("tokenizer.", "data.")) and path not in free]
    if varied and not file.objective.endswith("val_bpb"):
        return [
            f"objective: must be val_bpb, since {varied[0]} is searched and nats per token of different "
            f"tokens cannot be compared, got {file.objective}"
        ]
    return []


def _plug_problems(file: StudyFile, base: BaseModel) -> list[str]:
    own = flat(base).get("run.rungs")
    if file.rungs is None and own is None:
        return ["rungs: required with a config that has no run.rungs: how many values a run reports"]
    if own is not None and file.rungs not in (None, own):
        return [f"rungs: must be left out, since run.rungs of the base says {own}, got {file.rungs}"]
    try:
        train = imported(file.train, "train") if file.train != DEFAULT_TRAIN else None
    except Problem as problem:
        return list(problem.lines)
    if train is not None and not callable(train):
        return [f"train: must be a function, got {file.train}"]
    return []

"""Comparisons that are made of a search: studies of arms on fresh seeds, begun once and gone on with as they were."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from hpo.analysis.snapshot import Snapshot, counts, ended
from hpo.console import as_text, clock, say
from hpo.errors import NothingFeasible, Problem
from hpo.storage.attributes import FIXED_VALUES, SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.trials import study_attrs, study_ids
from hpo.study.spec import DEFAULT_CONFIG, NAME, Study, from_spec, seed_path
from model.section import flat, updated

FIRST_NEW_SEED = 1_000  # seeds from here on: searches begin at 0, and their noise floors go on from there


def search_study(snapshot: Snapshot) -> Study:
    """Return a search.

    Raises:
        Problem: it is a comparison itself.
    """
    if snapshot.spec.get("arms"):
        raise Problem(f"--study: must be a search; {snapshot.name} has arms, which are compared already")
    return from_spec(snapshot.spec)


def full_length_base(study: Study, tokens: int | None) -> BaseModel:
    """Return the base of a study at the length asked for, its test split scored.

    Raises:
        Problem: it has no length that could be set.
    """
    values: dict[str, Any] = {}
    if tokens is not None:
        if "run.tokens" not in flat(study.base):
            raise Problem("--tokens: needs a config with a field run.tokens; leave it out")
        values["run.tokens"] = tokens
    if study.file.config == DEFAULT_CONFIG:
        values["run.test"] = True
    return updated(study.base, {**values, **({"run.align": 1} if values else {})})


def existing_study(store: OpenStorage, name: str, key: str, source: str) -> Study | None:
    """Return the study of that name that was made for `source`, to be gone on with; None where there is none.

    Raises:
        Problem: it is no name, or a study of that name was made for something else.
    """
    if not NAME.fullmatch(name) or name.endswith((".yaml", ".yml")):
        raise Problem(
            f"--as: must be a name of letters, digits, '-', '_' and '.', such as {source}-2, got {name!r:.60}"
        )
    study_id = study_ids(store).get(name)
    attrs = {} if study_id is None else study_attrs(store, study_id)
    if study_id is None:
        return None
    if attrs.get(SPEC, {}).get("about", {}).get(key) != source:
        raise Problem(f"--as: the storage holds another study {name!r}; give this one a name of its own")
    return from_spec(attrs[SPEC])


def check_same_options(study: Study, options: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse to go on with a study under other options than it was begun with: a result must not choose its n.

    options: option -> what was asked for, None for nothing, and what the study has.

    Raises:
        Problem: naming those that differ.
    """
    problems = [
        f"{key}: study {study.name} was begun with {as_text(held) or 'none'}, got {as_text(wanted)}; "
        "`--as NAME` begins another on fresh seeds"
        for key, (wanted, held) in options.items()
        if wanted not in (None, [], held)
    ]
    if problems:
        raise Problem(*problems)


def first_new_seed(store: OpenStorage, snapshot: Snapshot) -> int:
    """Return a seed from which on none was used by a search, or by a study that was made for it."""
    study = from_spec(snapshot.spec)
    seed = seed_path(study.base)
    used = [FIRST_NEW_SEED - 1, *study.noise_seeds()]
    if seed is not None:
        used += [flat(study.configured(values)).get(seed, 0) for values in ({}, *study.file.baseline)]
        used += [t.user_attrs.get(FIXED_VALUES, t.params).get(seed, 0) for t in snapshot.trials]
    for study_id in study_ids(store).values():
        spec = study_attrs(store, study_id).get(SPEC, {})
        if snapshot.name in spec.get("about", {}).values():
            used += spec["seeds"]
    return max(number for number in used if isinstance(number, int)) + 1


def conclude_comparison(found: Snapshot, seconds: float, tell: Callable[[], bool]) -> int:
    """Say what a comparison showed once all its runs have ended; before, a verdict would choose its own n.

    tell: prints it, and returns whether there was anything to compare.

    Raises:
        NothingFeasible: there was nothing.
    """
    if not ended(found):
        n, total = counts(found)["complete"], sum(found.slots.values())
        say(f"{found.name}: {n} of {total} runs complete; there is a verdict when all have ended")
        return 0
    say(f"{found.name}: ended after {clock(seconds)}")
    if not tell():
        raise NothingFeasible(f"study {found.name}: no two runs of one seed are complete; `hpo trials` says why")
    return 0

"""Studies that compare the configurations of a search on new seeds, as `hpo confirm` and `hpo ablate` create them.

A comparison is a study of arms. An arm is a fixed configuration that is run once with each seed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from hpo.analysis.looks import look_lines
from hpo.analysis.progress import has_ended, trial_counts
from hpo.analysis.snapshot import Snapshot
from hpo.console import format_duration, format_value, say
from hpo.errors import NothingFeasible, Problem
from hpo.storage.attributes import FIXED_VALUES, SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.study.names import name_problem
from hpo.study.spec import DEFAULT_CONFIG, Study, seed_path
from hpo.study.stored import study_from_spec
from model.section import flat, updated

# Comparisons use seeds from here on. The baseline and the noise floor of a search use seeds from 0 on by default.
FIRST_NEW_SEED = 1_000


def search_study(snapshot: Snapshot) -> Study:
    """Return the study of a snapshot, which must be a search.

    Raises:
        Problem: the study has arms, so that it is a comparison itself.
    """
    if snapshot.spec.get("arms"):
        raise Problem(f"--study: must be a search, got {snapshot.name}, whose arms are already compared")
    return study_from_spec(snapshot.spec, snapshot.name)


def full_length_base(study: Study, tokens: int | None) -> BaseModel:
    """Return the base of a study with `tokens` as the length of a run, and with the test split evaluated.

    tokens: None keeps the length of the search.

    Raises:
        Problem: `tokens` is given, and the configuration has no field for the length of a run.
    """
    values: dict[str, Any] = {}
    if tokens is not None:
        if "run.tokens" not in flat(study.base):
            raise Problem("--tokens: must be left out, since the config has no field run.tokens")
        values["run.tokens"] = tokens
    if study.file.config == DEFAULT_CONFIG:
        values["run.test"] = True
    return updated(study.base, {**values, **({"run.align": 1} if values else {})})


def confirmation_name(snapshot: Snapshot) -> str:
    """Return the name of the study that confirms a search, unless --as gives another one."""
    return f"{snapshot.name}-confirm"


def existing_study(store: OpenStorage, name: str, key: str, search: Snapshot) -> Study | None:
    """Return the study `name` if the storage holds a comparison of a search by that name, else None.

    key: the kind of comparison, "confirms" or "ablates", as the study's `about` stores it.

    Raises:
        Problem: `name` is not a valid name, or it is the name of another study.
    """
    # A study of an earlier version may have a name that is not valid any more; the default name starts with it.
    if problem := name_problem(name.removeprefix(f"{search.name}-")):
        raise Problem(f"--as: {problem}, such as {search.name}-2, got {name!r:.60}")
    study_id = study_ids(store).get(name)
    if study_id is None:
        return None
    attrs = study_attrs(store, study_id, name)
    if attrs.get(SPEC, {}).get("about", {}).get(key) not in search.names:
        raise Problem(f"--as: must not be the name of another study in the storage, got {name!r}")
    return study_from_spec(attrs[SPEC], name)


def check_baseline(study: Study) -> None:
    """Check that a search has a baseline to compare with. A command has no defaults, so it may have none.

    Raises:
        Problem: it has none.
    """
    if study.file.command is not None and not study.file.baseline:
        names = ", ".join(f"{path}: ..." for path in study.file.space)
        raise Problem(
            f"study {study.name}: has no baseline to compare with; start another study with "
            f"`baseline: [{{{names}}}]` in its file"
        )


def check_same_options(
    study: Study, options: Mapping[str, tuple[Any, Any]], remedy: str = "`--as NAME` starts another study on new seeds"
) -> None:
    """Check that a comparison is continued under the options it was started with.

    If the number of seeds could change after a result is known, the result could choose its own sample size.

    options: option -> the requested value (None for the stored one), and the value that the study was started with.
    remedy: what the message advises.

    Raises:
        Problem: an option differs.
    """
    problems = [
        f"{key}: must be {format_value(stored) or 'empty'}, with which study {study.name} was started, "
        f"got {format_value(requested)}; {remedy}"
        for key, (requested, stored) in options.items()
        if requested not in (None, [], stored)
    ]
    if problems:
        raise Problem(*problems)


def first_new_seed(store: OpenStorage, snapshot: Snapshot) -> int:
    """Return the smallest seed above all seeds of a search and of its earlier comparisons, at least 1,000."""
    study = study_from_spec(snapshot.spec)
    seed = seed_path(study.base)
    used = [FIRST_NEW_SEED - 1, *study.noise_seeds()]
    if seed is not None:
        used += [flat(study.configured(values)).get(seed, 0) for values in ({}, *study.file.baseline)]
        used += [t.user_attrs.get(FIXED_VALUES, t.params).get(seed, 0) for t in snapshot.trials]
    for study_id in study_ids(store).values():
        spec = study_attrs(store, study_id).get(SPEC, {})
        if snapshot.names & {str(value) for value in spec.get("about", {}).values()}:
            used += spec["seeds"]
    return max(number for number in used if isinstance(number, int)) + 1


def conclude_comparison(snapshot: Snapshot, seconds: float, print_result: Callable[[], bool]) -> int:
    """Print the result of a comparison if all its runs have ended, else only its progress; return exit status 0.

    An early verdict would let the result choose its own sample size.

    print_result: prints the result; returns whether there was anything to compare.
    seconds: duration of this launch.

    Raises:
        NothingFeasible: there was nothing to compare.
    """
    if not has_ended(snapshot):
        say("\n".join(progress_lines(snapshot)))
        return 0
    say(f"{snapshot.name}: finished after {format_duration(seconds)}")
    if not print_result():
        raise NothingFeasible(
            f"study {snapshot.name}: no two runs with the same seed are complete; `hpo trials` shows the reasons"
        )
    return 0


def progress_lines(snapshot: Snapshot) -> list[str]:
    """Return how many runs of a comparison are complete."""
    n, total = trial_counts(snapshot)["complete"], sum(snapshot.slots.values())
    text = f"{snapshot.name}: {n} of {total} runs are complete; the verdict is printed when all runs have ended"
    return [text, *look_lines(snapshot)]

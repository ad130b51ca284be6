"""`hpo confirm`: re-run the best trials of a search and its baseline on new seeds, and test the paired differences."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.analysis.progress import has_ended, searched_trials
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.statistics import Test, min_pairs
from hpo.console import Format, print_records, say
from hpo.errors import NothingFeasible, Problem
from hpo.evidence import sequential
from hpo.evidence.comparison import (
    check_baseline,
    check_same_options,
    conclude_comparison,
    confirmation_name,
    existing_study,
    first_new_seed,
    full_length_base,
    search_study,
)
from hpo.evidence.confirm_verdicts import BASELINE, confirmation_lines, confirmation_table
from hpo.evidence.length_rule import LengthRule
from hpo.evidence.paired import compare_arms
from hpo.launcher.options import LaunchOptions
from hpo.launcher.supervisor import OnFinish, run_study
from hpo.queue.compatibility import check_engine_of_pairs
from hpo.storage.attributes import FIXED_VALUES, SPEC
from hpo.storage.engine import open_readonly
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.storage.trials import Trial
from hpo.study.arms import ArmsPlan, plan_study
from hpo.study.places import at_places
from hpo.study.sequential import KEY, plan_of
from hpo.study.spec import Study, seed_path
from hpo.transfer.rule import Rule
from model.section import flat

# Eight pairs show a difference of two standard deviations in nine of ten confirmations.
DEFAULT_TOP, DEFAULT_SEEDS = 3, 8
SEQUENTIAL_TOP = 1  # further configurations would cost most of the runs that looks save
MOST_PAIRS = 100  # of a sequential confirmation: the bounds are simulated


@dataclass(frozen=True)
class ConfirmRequest:
    """The options of `hpo confirm`; None means the default, or the value of the confirmation that is continued.

    top: number of configurations to re-run. seeds: runs of each, at most if `sequential`. tokens: length of a run.
    name: of the study of the new runs. sequential: whether to stop as soon as the pairs so far decide.
    rule: by which the configurations are carried over to `tokens`.
    """

    study: str | None
    top: int | None
    seeds: int | None
    tokens: int | None
    name: str | None
    test: Test | None
    sequential: bool = False
    rule: Rule | None = None


def run_confirmation(request: ConfirmRequest, options: LaunchOptions, on_finish: OnFinish) -> int:
    """Re-run the best trials of a search and its baseline on new seeds; return the exit status."""
    with open_readonly(options.storage) as store:
        snapshot = read_snapshot(store, request.study)
        name = request.name or confirmation_name(snapshot)
        study = existing_study(store, name, "confirms", snapshot)
        if study is None:
            rule = LengthRule(store, snapshot, request.tokens, request.rule)
            study = plan_confirmation(snapshot, name, request, first_new_seed(store, snapshot), rule)
            if request.sequential:
                _note_earlier(store, snapshot, study)
        else:
            earlier = read_snapshot(store, name)
            if not has_ended(earlier):
                check_engine_of_pairs(name, study.file, earlier.trials)
            _check_sequential(study, request)
            check_same_options(study, _requested_and_stored(study, request))
            for trial in _newer_best_trials(snapshot, study):
                say(
                    f"note: trial {trial} is among the best only since {name} was started, which does not include it; "
                    "`--as NAME` starts another confirmation on new seeds"
                )
    study = at_places(study, options.overrides)
    return run_study(replace(options, study=name), study, on_finish)


def conclude_confirmation(
    snapshot: Snapshot, folder: Path, options: LaunchOptions, seconds: float, format: Format = Format.table
) -> int:
    """Print the table and the verdicts of a confirmation whose runs have ended; return the exit status."""

    def print_result() -> bool:
        print_records(confirmation_table(snapshot), format)
        say("\n".join(["", *confirmation_lines(snapshot)]))
        return any(arm.difference for arm in compare_arms(snapshot))

    return conclude_comparison(snapshot, seconds, print_result)


def plan_confirmation(
    snapshot: Snapshot, name: str, request: ConfirmRequest, first_seed: int, rule: LengthRule | None = None
) -> Study:
    """Return the study that confirms the best trials of a search, on consecutive seeds from `first_seed` on.

    rule: carries the configurations over to the length of the new runs; None copies them.

    Raises:
        NothingFeasible: no trial is complete except the baseline.
        Problem: the study has arms itself, or there are too few seeds for the test to be significant.
    """
    search, test = search_study(snapshot), request.test or "t"
    check_baseline(search)
    best = ranked_trials(snapshot, search)[: request.top or _default_top(request)]
    if not best:
        raise NothingFeasible(
            f"study {snapshot.name}: no trial is complete except the baseline, so there is nothing to confirm; "
            "`hpo status` shows the progress"
        )
    n = request.seeds or (sequential.DEFAULT_PAIRS if request.sequential else DEFAULT_SEEDS)
    _check_test(request, test, n, len(best))
    names = {f"trial {t.number}": t for t in best}
    baseline: Mapping[str, Any] = search.file.first_baseline
    arms = {BASELINE: baseline} | {arm: t.user_attrs.get(FIXED_VALUES, t.params) for arm, t in names.items()}
    if rule is not None:
        arms = rule.carried_arms(search, arms, BASELINE)
    about = {
        "confirms": snapshot.name,
        "trials": {arm: t.number for arm, t in names.items()},
        "found": {arm: t.values[0] for arm, t in names.items()} | {BASELINE: snapshot.baseline_value},
        "among": len(searched_trials(snapshot)),
        "test": test,
        "searched_tokens": flat(search.base).get("run.tokens"),
    }
    if rule is not None and request.tokens is not None:
        about["rule"] = str(request.rule or Rule.copy)
    if request.sequential:
        about[KEY] = {"bounds": sequential.sequential_bounds(n, len(best))}
    compared = ArmsPlan(f"`hpo confirm` of {snapshot.name}", arms, range(first_seed, first_seed + n), about)
    return plan_study(search, name, full_length_base(search, request.tokens), compared)


def _default_top(request: ConfirmRequest) -> int:
    if request.rule is Rule.fitted:
        return 1  # a ladder predicts one configuration
    return SEQUENTIAL_TOP if request.sequential else DEFAULT_TOP


def _check_test(request: ConfirmRequest, test: Test, n: int, compared: int) -> None:
    """Check that a test can be significant with n pairs, and that it fits looks at the results.

    Raises:
        Problem: it cannot, or it does not.
    """
    if request.sequential and test != "t":
        raise Problem(f"--test: must be t with --sequential, because the bounds are those of t tests, got {test}")
    required = min_pairs(test, compared)
    if n < required:
        raise Problem(
            f"--seeds: must be at least {required}, or no difference between {compared} configurations and the "
            f"baseline, however large, is significant in a {test} test; got {n}"
        )
    if request.sequential and n > MOST_PAIRS:
        raise Problem(f"--seeds: must be at most {MOST_PAIRS} with --sequential, got {n}")


def _check_sequential(study: Study, request: ConfirmRequest) -> None:
    """Check that a confirmation keeps its looks and its bounds.

    Raises:
        Problem: it started with a fixed number of pairs, so that its results were not bounded at each look, or the
            bounds are those of another number of pairs.
    """
    n, bounds = len(study.file.seeds), plan_of(study.file.about)
    if bounds is not None and request.seeds not in (None, n):
        raise Problem(
            f"--seeds: must be {n}, because the bounds of study {study.name} share the error among at most {n} pairs, "
            f"got {request.seeds}; `--as NAME` starts another study on new seeds"
        )
    if request.sequential and bounds is None:
        raise Problem(
            f"--sequential: must be omitted, because study {study.name} was started with a fixed number of "
            f"{n} pairs; `--as NAME` starts another study on new seeds"
        )


def _note_earlier(store: OpenStorage, snapshot: Snapshot, study: Study) -> None:
    """Print which earlier confirmations include a trial of a new confirmation: each has its own chance of an error."""
    for name, study_id in study_ids(store).items():
        about = study_attrs(store, study_id).get(SPEC, {}).get("about", {})
        shared = set(about.get("trials", {})) & set(study.file.about["trials"])
        if about.get("confirms") in snapshot.names and shared:
            say(
                f"note: {name} has already re-run {', '.join(sorted(shared))}. Each confirmation calls a trial without "
                "gain better with a probability of 2.5 %, so report all of them"
            )


def ranked_trials(snapshot: Snapshot, study: Study) -> list[Trial]:
    """Return the complete trials of a search, the best first, without the baseline.

    Of trials with the same configuration, only the best is returned.
    """
    seed = seed_path(study.base)
    seen = [_without_seed(study, study.file.first_baseline, seed)]
    ranked = []
    for trial in sorted(snapshot.feasible, key=snapshot.loss):
        config = _without_seed(study, trial.user_attrs.get(FIXED_VALUES, trial.params), seed)
        if config not in seen:
            seen.append(config)
            ranked.append(trial)
    return ranked


def _newer_best_trials(snapshot: Snapshot, study: Study) -> list[int]:
    """Return the numbers of the trials that are among the best now, but not among the arms of a confirmation."""
    confirmed = study.file.about["trials"].values()
    best = ranked_trials(snapshot, search_study(snapshot))[: len(confirmed)]
    return [t.number for t in best if t.number not in confirmed]


def _without_seed(study: Study, values: Mapping[str, Any], seed: str | None) -> BaseModel:
    return study.configured({key: value for key, value in values.items() if key != seed})


def _requested_and_stored(study: Study, request: ConfirmRequest) -> dict[str, tuple[Any, Any]]:
    """Return option -> its requested value and the value of the existing confirmation."""
    file = study.file
    return {
        "--top": (request.top, len(file.arms or {}) - 1),
        "--seeds": (request.seeds, len(file.seeds)),
        "--tokens": (request.tokens, flat(study.base).get("run.tokens")),
        "--test": (request.test, file.about["test"]),
        "--rule": (request.rule and str(request.rule), file.about.get("rule", str(Rule.copy))),
    }

"""`hpo confirm`: re-run the best trials of a search and its baseline on new seeds, and test the paired differences."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.analysis.progress import searched_trials
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.statistics import Test, min_pairs
from hpo.console import Format, format_number, print_records, say
from hpo.errors import NothingFeasible, Problem
from hpo.evidence.comparison import (
    check_same_options,
    conclude_comparison,
    existing_study,
    first_new_seed,
    full_length_base,
    search_study,
)
from hpo.evidence.paired import ArmComparison, compare_arms, comparison_record, scope_note
from hpo.launcher.options import LaunchOptions
from hpo.launcher.supervisor import run_study
from hpo.storage.attributes import FIXED_VALUES
from hpo.storage.engine import open_readonly
from hpo.storage.trials import Trial
from hpo.study.arms import ArmsPlan, plan_study
from hpo.study.places import at_places
from hpo.study.spec import Study, seed_path
from hpo.study.stored import study_from_spec
from model.section import flat

BASELINE = "baseline"
# Eight pairs show a difference of two standard deviations in nine of ten confirmations.
DEFAULT_TOP, DEFAULT_SEEDS = 3, 8


@dataclass(frozen=True)
class ConfirmRequest:
    """The options of `hpo confirm`; None means the default, or the value of the confirmation that is continued.

    top: number of configurations to re-run. seeds: runs of each. tokens: length of a run.
    name: of the study of the new runs.
    """

    study: str | None
    top: int | None
    seeds: int | None
    tokens: int | None
    name: str | None
    test: Test | None


def run_confirmation(request: ConfirmRequest, options: LaunchOptions, format: Format) -> int:
    """Re-run the best trials of a search and its baseline on new seeds; return the exit status."""
    with open_readonly(options.storage) as store:
        snapshot = read_snapshot(store, request.study)
        name = request.name or f"{snapshot.name}-confirm"
        study = existing_study(store, name, "confirms", snapshot)
        if study is None:
            study = plan_confirmation(snapshot, name, request, first_new_seed(store, snapshot))
        else:
            check_same_options(study, _requested_and_stored(study, request))
            for trial in _newer_best_trials(snapshot, study):
                say(
                    f"note: trial {trial} is among the best only since {name} was started, which does not include it; "
                    "`--as NAME` starts another confirmation on new seeds"
                )
    study = at_places(study, options.overrides)
    return run_study(replace(options, study=name), study, partial(conclude_confirmation, format=format))


def conclude_confirmation(
    snapshot: Snapshot, folder: Path, options: LaunchOptions, seconds: float, format: Format = Format.table
) -> int:
    """Print the table and the verdicts of a confirmation whose runs have ended; return the exit status."""

    def print_result() -> bool:
        print_records(confirmation_table(snapshot), format)
        say("\n".join(["", *confirmation_verdicts(snapshot), scope_note(snapshot)]))
        return any(arm.difference for arm in compare_arms(snapshot))

    return conclude_comparison(snapshot, seconds, print_result)


def plan_confirmation(snapshot: Snapshot, name: str, request: ConfirmRequest, first_seed: int) -> Study:
    """Return the study that confirms the best trials of a search, on consecutive seeds from `first_seed` on.

    Raises:
        NothingFeasible: no trial is complete except the baseline.
        Problem: the study has arms itself, or there are too few seeds for the test to be significant.
    """
    search, test = search_study(snapshot), request.test or "t"
    best = ranked_trials(snapshot, search)[: request.top or DEFAULT_TOP]
    if not best:
        raise NothingFeasible(
            f"study {snapshot.name}: no trial is complete except the baseline, so there is nothing to confirm; "
            "`hpo status` shows the progress"
        )
    n, required = request.seeds or DEFAULT_SEEDS, min_pairs(test, len(best))
    if n < required:
        raise Problem(
            f"--seeds: must be at least {required}, or no difference between {len(best)} configurations and the "
            f"baseline, however large, is significant in a {test} test; got {n}"
        )
    names = {f"trial {t.number}": t for t in best}
    baseline: Mapping[str, Any] = search.file.first_baseline
    arms = {BASELINE: baseline} | {arm: t.user_attrs.get(FIXED_VALUES, t.params) for arm, t in names.items()}
    about = {
        "confirms": snapshot.name,
        "trials": {arm: t.number for arm, t in names.items()},
        "found": {arm: t.values[0] for arm, t in names.items()} | {BASELINE: snapshot.baseline_value},
        "among": len(searched_trials(snapshot)),
        "test": test,
        "searched_tokens": flat(search.base).get("run.tokens"),
    }
    compared = ArmsPlan(f"`hpo confirm` of {snapshot.name}", arms, range(first_seed, first_seed + n), about)
    return plan_study(search, name, full_length_base(search, request.tokens), compared)


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
    }


def metric_on_test_split(snapshot: Snapshot) -> str:
    """Return the objective's metric on the test split."""
    return snapshot.objective.replace("val_", "test_")


def confirmation_table(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return one record per arm: its value in the search, and the results of the new seeds on both splits."""
    searched, metric = snapshot.spec["about"]["found"], metric_on_test_split(snapshot)
    on_test = {arm.arm: comparison_record(arm) for arm in compare_arms(snapshot, metric)}
    records = []
    for arm in compare_arms(snapshot):
        record = {"arm": arm.arm, "search": searched.get(arm.arm)}
        record |= {key: value for key, value in comparison_record(arm).items() if key != "arm"}
        test = on_test[arm.arm]
        if test["runs"]:
            record |= {metric: test["mean"], f"{metric} difference": test["difference"]}
        records.append(record)
    return records


def confirmation_verdicts(snapshot: Snapshot) -> list[str]:
    """Return one sentence per arm: its verdict, paired difference, confidence interval and p-value."""
    on_test = {arm.arm: arm for arm in compare_arms(snapshot, metric_on_test_split(snapshot))}
    _, *arms = compare_arms(snapshot)
    return [_verdict_sentence(snapshot, arm, on_test[arm.arm], len(arms)) for arm in arms]


def _verdict_sentence(snapshot: Snapshot, arm: ArmComparison, on_test: ArmComparison, n_compared: int) -> str:
    if arm.difference is None or arm.p is None:
        return f"{arm.arm}: {arm.verdict} ({arm.n} runs have a value)"
    d, test = arm.difference, on_test.difference
    p = f"p = {arm.p:.2g}" if n_compared == 1 else f"p = {arm.p:.2g} corrected for {n_compared} comparisons (Holm)"
    sentence = f"{arm.arm}: {arm.verdict}: paired difference {format_number(d.mean)} from the baseline "
    sentence += f"(95 % confidence interval {format_number(d.low)} to {format_number(d.high)}, {d.n} pairs, {p})"
    sentence += f"; {format_number(test.mean)} on the test split" if test else ""
    return sentence + _remaining_gain(snapshot, arm.arm, d.mean)


def _remaining_gain(snapshot: Snapshot, arm: str, confirmed: float) -> str:
    """Return how much of the gain in the search the new seeds confirm, nothing if the search showed no gain.

    confirmed: mean paired difference on the new seeds.
    """
    about = snapshot.spec["about"]
    value, baseline = about["found"].get(arm), about["found"].get(BASELINE)
    loss = snapshot.direction.loss
    if value is None or baseline is None or loss(value) >= loss(baseline):
        return ""
    gain = value - baseline
    length = flat(study_from_spec(snapshot.spec).base).get("run.tokens")
    at = "" if length == about["searched_tokens"] else f" at {about['searched_tokens']:,} tokens"
    remaining = max(0.0, confirmed / gain)
    return f"; the difference in the search was {format_number(gain)}{at}, of which {remaining:.0%} remains"

"""hpo confirm: the best of a search and its baseline, run again at full length on fresh seeds, in pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.statistics import Test, fewest
from hpo.console import Format, number, rows, say
from hpo.errors import NothingFeasible, Problem
from hpo.evidence.comparison import (
    check_same_options,
    conclude_comparison,
    existing_study,
    first_new_seed,
    full_length_base,
    search_study,
)
from hpo.evidence.paired import compare_arms, comparison_record
from hpo.launcher.supervisor import LaunchOptions, run_study
from hpo.storage.attributes import FIXED_VALUES
from hpo.storage.engine import open_readonly
from hpo.storage.trials import State, Trial
from hpo.study.arms import Compared, study_of
from hpo.study.spec import Study, from_spec, seed_path
from model.section import flat

BASELINE = "baseline"
DEFAULT_TOP, DEFAULT_SEEDS = 3, 8  # what is usual: eight pairs show a gain of two sigma nine times in ten


@dataclass(frozen=True)
class ConfirmRequest:
    """What the command line of `hpo confirm` says; None: what is usual, or what a study that is begun has."""

    study: str | None
    top: int | None
    seeds: int | None
    tokens: int | None
    name: str | None
    test: Test | None


def run_confirmation(asked: ConfirmRequest, options: LaunchOptions, format: Format) -> int:
    """Run the best configurations of a study and its baseline again; return the exit status."""
    with open_readonly(options.storage) as store:
        snapshot = read_snapshot(store, asked.study)
        name = asked.name or f"{snapshot.name}-confirm"
        study = existing_study(store, name, "confirms", snapshot.name)
        if study is not None:
            check_same_options(study, _requested_and_stored(study, asked))
            for number in _newer_best_trials(snapshot, study):
                say(
                    f"note: trial {number} is among the best only since {name} was begun, which does not have it; "
                    "`--as NAME` confirms it on fresh seeds"
                )
        else:
            study = plan_confirmation(snapshot, name, asked, first_new_seed(store, snapshot))
    return run_study(replace(options, study=name), study, partial(conclude_confirmation, format=format))


def conclude_confirmation(
    found: Snapshot, folder: Path, options: LaunchOptions, seconds: float, format: Format = Format.table
) -> int:
    """Say what was confirmed."""

    def tell() -> bool:
        rows(confirmation_table(found), format)
        say("\n".join(["", *confirmation_verdicts(found)]))
        return any(row.difference for row in compare_arms(found))

    return conclude_comparison(found, seconds, tell)


def plan_confirmation(snapshot: Snapshot, name: str, asked: ConfirmRequest, first: int) -> Study:
    """Return the study that confirms the best of another one, on seeds from `first` on.

    Raises:
        NothingFeasible: no trial is complete. Problem: it has arms itself, or too few seeds are asked for.
    """
    searched, test = search_study(snapshot), asked.test or "t"
    best = ranked_trials(snapshot, searched)[: asked.top or DEFAULT_TOP]
    if not best:
        raise NothingFeasible(
            f"study {snapshot.name}: no trial but its baseline is complete yet, so there is nothing to confirm; "
            "`hpo status` says how far it is"
        )
    n, least = asked.seeds or DEFAULT_SEEDS, fewest(test, len(best))
    if n < least:
        raise Problem(
            f"--seeds: must be at least {least}, or no difference between {len(best)} configurations and the "
            f"baseline, however large, is significant in a {test} test; got {n}"
        )
    names = {f"trial {t.number}": t for t in best}
    baseline: Mapping[str, Any] = next(iter(searched.file.baseline), {})
    wanted = {BASELINE: baseline} | {arm: t.user_attrs.get(FIXED_VALUES, t.params) for arm, t in names.items()}
    about = {
        "confirms": snapshot.name,
        "trials": {arm: t.number for arm, t in names.items()},
        "found": {arm: t.values[0] for arm, t in names.items()} | {BASELINE: _baseline_value(snapshot)},
        "among": len(snapshot.feasible),
        "test": test,
        "searched_tokens": flat(searched.base).get("run.tokens"),
    }
    made = Compared(f"`hpo confirm` of {snapshot.name}", wanted, range(first, first + n), about)
    return study_of(searched, name, full_length_base(searched, asked.tokens), made)


def ranked_trials(snapshot: Snapshot, study: Study) -> list[Trial]:
    """Return the finished trials, the best first, one of each configuration; the baseline is none of them."""
    seed = seed_path(study.base)
    seen = [_without_seed(study, next(iter(study.file.baseline), {}), seed)]
    found = []
    for trial in sorted(snapshot.feasible, key=lambda t: t.values[0]):
        config = _without_seed(study, trial.user_attrs.get(FIXED_VALUES, trial.params), seed)
        if config not in seen:
            seen.append(config)
            found.append(trial)
    return found


def _newer_best_trials(snapshot: Snapshot, study: Study) -> list[int]:
    """Return the trials that would be confirmed if a confirmation were begun now, and are not in it."""
    held = study.file.about["trials"].values()
    return [t.number for t in ranked_trials(snapshot, search_study(snapshot))[: len(held)] if t.number not in held]


def _without_seed(study: Study, values: Mapping[str, Any], seed: str | None) -> BaseModel:
    return study.configured({key: value for key, value in values.items() if key != seed})


def _baseline_value(snapshot: Snapshot) -> float | None:
    found = snapshot.baseline()
    return found.values[0] if found is not None and found.state == State.COMPLETE else None


def _requested_and_stored(study: Study, asked: ConfirmRequest) -> dict[str, tuple[Any, Any]]:
    """Return what was asked for beside what a study that is begun has."""
    file = study.file
    return {
        "--top": (asked.top, len(file.arms or {}) - 1),
        "--seeds": (asked.seeds, len(file.seeds)),
        "--tokens": (asked.tokens, flat(study.base).get("run.tokens")),
        "--test": (asked.test, file.about["test"]),
    }


def test_split_metric(snapshot: Snapshot) -> str:
    """Return the metric of the test split that goes with the objective."""
    return snapshot.objective.replace("val_", "test_")


def confirmation_table(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return a record an arm: the search's value beside what the fresh seeds say, on both splits."""
    found, on_test = (
        snapshot.spec["about"]["found"],
        {row.arm: row for row in compare_arms(snapshot, test_split_metric(snapshot))},
    )
    records = []
    for row in compare_arms(snapshot):
        record, test = comparison_record(row), on_test[row.arm]
        records.append(
            {"arm": row.arm, "search": found.get(row.arm)}
            | {key: value for key, value in record.items() if key != "arm"}
            | (
                {
                    test_split_metric(snapshot): test.mean,
                    f"{test_split_metric(snapshot)} difference": comparison_record(test)["difference"],
                }
                if test.n
                else {}
            )
        )
    return records


def confirmation_verdicts(snapshot: Snapshot) -> list[str]:
    """Return a sentence an arm."""
    found, rows_of, on_test = (
        snapshot.spec["about"]["found"],
        compare_arms(snapshot),
        {r.arm: r for r in compare_arms(snapshot, test_split_metric(snapshot))},
    )
    told = []
    for row in rows_of[1:]:
        if row.difference is None or row.p is None:
            told.append(f"{row.arm}: {row.verdict} ({row.n} runs have a value)")
            continue
        d, test = row.difference, on_test[row.arm].difference
        corrected = f", corrected for {len(rows_of) - 1}" if len(rows_of) > 2 else ""
        said = f"{row.arm}: {row.verdict}: {number(d.mean)} against the baseline ({number(d.low)} to {number(d.high)}, "
        said += f"p {row.p:.2g} of {d.n} pairs{corrected})" + (
            f"; {number(test.mean)} on the test split" if test else ""
        )
        told.append(said + _remaining_gain(snapshot, found.get(row.arm), found.get(BASELINE), d.mean))
    return told


def _remaining_gain(snapshot: Snapshot, value: float | None, baseline: float | None, confirmed: float) -> str:
    """Return what is left of the gain that the search had seen."""
    if value is None or baseline is None or value >= baseline:
        return ""
    gain = value - baseline
    about = snapshot.spec["about"]
    length = flat(from_spec(snapshot.spec).base).get("run.tokens")
    at = "" if length == about["searched_tokens"] else f" at {about['searched_tokens']:,} tokens"
    return f"; the search saw {number(gain)}{at}, of which {max(0.0, confirmed / gain):.0%} is left"

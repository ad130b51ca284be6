"""What a confirmation shows: one table row and one sentence per configuration."""

from typing import Any

from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.statistics import Paired
from hpo.console import format_number
from hpo.evidence.comparison import confirmation_name, progress_lines
from hpo.evidence.paired import ArmComparison, compare_arms, comparison_record, scope_note
from hpo.storage.retry import OpenStorage
from hpo.study.stored import study_from_spec
from model.section import flat

BASELINE = "baseline"


def results_on_test_split(snapshot: Snapshot) -> tuple[str, list[ArmComparison]]:
    """Return the objective's metric on the test split and the arms compared by it, ("", []) without such a metric."""
    if "val_" not in snapshot.objective:  # a training function of the user's own
        return "", []
    metric = snapshot.objective.replace("val_", "test_")
    return metric, compare_arms(snapshot, metric)


def confirmation_table(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return one record per arm: its value in the search, and the results of the new seeds on both splits."""
    searched, (metric, tested) = snapshot.spec["about"]["found"], results_on_test_split(snapshot)
    on_test = {arm.arm: comparison_record(arm) for arm in tested}
    records = []
    for arm in compare_arms(snapshot):
        record = {"arm": arm.arm, "search": searched.get(arm.arm)}
        record |= {key: value for key, value in comparison_record(arm).items() if key != "arm"}
        test = on_test.get(arm.arm)
        if test and test["runs"]:
            record |= {metric: test["mean"], f"{metric} difference": test["difference"]}
        records.append(record)
    return records


def confirmation_of(
    store: OpenStorage, search: Snapshot, name: str | None
) -> tuple[str, list[dict[str, Any]], list[str]]:
    """Return name, table and verdicts of the confirmation of a search; name: as `--as` gives it.

    Before all runs have ended, there is no table, and lines about the progress replace the verdicts.
    """
    snapshot = read_snapshot(store, name or confirmation_name(search))
    if not has_ended(snapshot):
        return snapshot.name, [], progress_lines(snapshot)
    return snapshot.name, confirmation_table(snapshot), confirmation_lines(snapshot)


def confirmation_lines(snapshot: Snapshot) -> list[str]:
    """Return the verdicts of a confirmation whose runs have ended, and what they cover."""
    return [*confirmation_verdicts(snapshot), scope_note(snapshot)]


def confirmation_verdicts(snapshot: Snapshot) -> list[str]:
    """Return one sentence per arm: its verdict, paired difference, confidence interval and p-value."""
    on_test = {arm.arm: arm.difference for arm in results_on_test_split(snapshot)[1]}
    _, *arms = compare_arms(snapshot)
    return [_verdict_sentence(snapshot, arm, on_test.get(arm.arm), len(arms)) for arm in arms]


def _verdict_sentence(snapshot: Snapshot, arm: ArmComparison, test: Paired | None, n_compared: int) -> str:
    if arm.difference is None or arm.p is None:
        return f"{arm.arm}: {arm.verdict} ({arm.n} runs have a value)"
    d = arm.difference
    p = f"p = {arm.p:.2g}" if n_compared == 1 else f"p = {arm.p:.2g} corrected for {n_compared} comparisons (Holm)"
    looks, pairs = arm.at_most is not None, f"{d.n} pairs"
    verdict = f"{arm.verdict} after {d.n} of at most {arm.at_most} pairs" if looks else arm.verdict
    reference = snapshot.spec["about"].get("reference", "the baseline")
    sentence = f"{arm.arm}: {verdict}: paired difference {format_number(d.mean)} from {reference} (95 % "
    sentence += f"{'repeated ' if looks else ''}confidence interval {format_number(d.low)} to {format_number(d.high)}, "
    sentence += f"{p})" if looks else f"{pairs}, {p})"
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

"""`hpo transfer --verify`: train the prediction of a ladder and the copied configurations at the target, in pairs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot
from hpo.analysis.statistics import min_pairs
from hpo.console import Format, format_number, print_records, say
from hpo.errors import Problem
from hpo.evidence.comparison import conclude_comparison, full_length_base
from hpo.evidence.confirm_verdicts import confirmation_table, confirmation_verdicts
from hpo.evidence.paired import compare_arms, scope_note
from hpo.launcher.options import LaunchOptions
from hpo.study.arms import ArmsPlan, plan_study
from hpo.study.spec import Study
from hpo.transfer.prediction import Prediction
from model.section import updated

COPIED, FITTED, NEAREST = "copied", "fitted", "nearest cell"
VERIFIES = "verifies"  # key of `about`: the ladder whose prediction a study verifies


def verification_name(ladder: str, target: Mapping[str, Any]) -> str:
    """Return the name of the study that verifies the prediction for a target."""
    return "-".join([ladder, "verify", *(str(target[path]) for path in sorted(target))])


def plan_verification(ladder: Study, prediction: Prediction, n: int, first_seed: int) -> Study:
    """Return the study that trains prediction, copied configuration and nearest cell's best run, on n seeds.

    Configurations that are equal run once.

    Raises:
        Problem: too few seeds for a test, or nothing to compare.
    """
    arms = {COPIED: dict(prediction.copied)}
    for name, values in ((FITTED, prediction.values), (NEAREST, prediction.nearest)):
        if dict(values) not in arms.values():
            arms[name] = dict(values)
    if FITTED not in arms:
        raise Problem("--verify: must be omitted, because the prediction is the copied configuration")
    if n < (required := min_pairs("t", len(arms) - 1)):
        raise Problem(f"--verify: must be at least {required}, or no difference is significant, got {n}")
    about = {VERIFIES: ladder.name, "target": dict(prediction.target), "reference": "the copied configuration"}
    about |= {"found": {}, "test": "t"}
    about["predicted"] = {"loss": prediction.value, "low": prediction.low, "high": prediction.high}
    scale = {path: value for path, value in prediction.copied.items() if path not in dict(ladder.file.space)}
    base = updated(full_length_base(ladder, None), scale)
    plan = ArmsPlan(f"`hpo transfer --verify` of {ladder.name}", arms, range(first_seed, first_seed + n), about)
    return plan_study(ladder, verification_name(ladder.name, prediction.target), base, plan)


def conclude_verification(
    snapshot: Snapshot, folder: Path, options: LaunchOptions, seconds: float, format: Format = Format.table
) -> int:
    """Print the table and the verdicts of a verification whose runs have ended; return the exit status."""

    def print_result() -> bool:
        print_records(verification_table(snapshot), format)
        say("\n".join(["", *confirmation_verdicts(snapshot), loss_line(snapshot), scope_note(snapshot)]))
        return any(arm.difference for arm in compare_arms(snapshot))

    return conclude_comparison(snapshot, seconds, print_result)


def verification_table(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return one record per arm."""
    return [{k: v for k, v in record.items() if k != "search"} for record in confirmation_table(snapshot)]


def loss_line(snapshot: Snapshot) -> str:
    """Return a sentence that compares the measured loss of the prediction with the predicted one."""
    predicted = snapshot.spec["about"]["predicted"]
    low, high = predicted["low"], predicted["high"]
    mean = next((arm.mean for arm in compare_arms(snapshot) if arm.arm == FITTED), None)
    interval = f"{format_number(predicted['loss'])} (90 % interval {format_number(low)} to {format_number(high)})"
    if mean is None:
        return f"predicted {snapshot.objective} {interval}"
    where = "inside" if low <= mean <= high else "outside"
    return f"predicted {snapshot.objective} {interval}, measured {format_number(mean)}, {where} the interval"

"""Which trial of a study to export: one that was confirmed before the best of the search."""

from hpo.analysis.snapshot import Snapshot, best_trial, ended, find, read_snapshot
from hpo.errors import Problem
from hpo.storage.attributes import SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.trials import Trial, study_attrs, study_ids

UNCONFIRMED = "the search's best, not confirmed: `hpo confirm` says whether it is better than the baseline"


def trial_to_export(store: OpenStorage, snapshot: Snapshot) -> tuple[Trial, str]:
    """Return the trial to keep, and in words what is known of it: the best that was confirmed, else the search's best.

    Raises:
        NothingFeasible: no trial is complete.
    """
    if snapshot.spec.get("arms"):
        raise Problem(
            f"--trial: required, since {snapshot.name} has arms: their runs differ by luck; `hpo trials` lists them"
        )
    found = _latest_confirmation(store, snapshot)
    if found is None:
        return best_trial(snapshot), UNCONFIRMED
    from hpo.evidence.paired import compare_arms  # scipy, which few exports need

    better = [row for row in compare_arms(found) if row.verdict == "better" and row.n == len(found.spec["seeds"])]
    if not better:
        best = best_trial(snapshot)
        if best.number not in found.spec["about"]["trials"].values():
            return best, f"the search's best, which was not among those that {found.name} ran again"
        return best, f"the search's best, which {found.name} did not find better than the baseline"
    least = min(better, key=lambda row: row.mean or 0.0)
    return find(
        snapshot, found.spec["about"]["trials"][least.arm]
    ), f"confirmed better than the baseline by {found.name}"


def _latest_confirmation(store: OpenStorage, snapshot: Snapshot) -> Snapshot | None:
    """Return the latest study that confirmed this one and is over."""
    for name, _ in sorted(study_ids(store).items(), key=lambda item: -item[1]):
        spec = study_attrs(store, study_ids(store)[name]).get(SPEC, {})
        if spec.get("about", {}).get("confirms") == snapshot.name and ended(found := read_snapshot(store, name)):
            return found
    return None

"""Choose the trial of a study that `hpo export` writes: a confirmed trial, else the best trial of the search."""

from hpo.analysis.export import changed_fields
from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import Snapshot, best_trial, find_trial, read_snapshot
from hpo.errors import Problem
from hpo.storage.attributes import SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.storage.trials import Trial

UNCONFIRMED = "not confirmed: best of the search; `hpo confirm` tests whether it is better than the baseline"
BASELINE = "the baseline: no other trial of the search is better"


def trial_to_export(store: OpenStorage, snapshot: Snapshot) -> tuple[Trial, str]:
    """Return the trial to export, and whether `hpo confirm` confirmed it, in words.

    Among the arms of the latest finished confirmation that are better than the baseline, the one with the best mean
    is preferred to the best trial of the search.

    Raises:
        NothingFeasible: no trial is complete.
        Problem: the study has arms, of which none is the best.
    """
    if snapshot.spec.get("arms"):
        raise Problem(
            f"--trial: required, since {snapshot.name} has arms, whose runs differ by their seed; "
            "`hpo trials` lists them"
        )
    confirmation = _latest_confirmation(store, snapshot)
    if confirmation is None:
        best = best_trial(snapshot)
        return best, origin_of_unconfirmed(snapshot, best)
    from hpo.evidence.paired import compare_arms  # imports scipy, which few exports need

    trials, seeds = confirmation.spec["about"]["trials"], confirmation.spec["seeds"]
    # A sequential confirmation needs no further runs of an arm that is better.
    ended = [arm for arm in compare_arms(confirmation) if arm.at_most is not None or arm.n == len(seeds)]
    better = [arm for arm in ended if arm.verdict == "better"]
    if better:
        preferred = min(better, key=lambda arm: snapshot.direction.loss(arm.mean or 0.0))
        return find_trial(snapshot, trials[preferred.arm]), f"confirmed better than the baseline by {confirmation.name}"
    best = best_trial(snapshot)
    if best.number not in trials.values():
        return best, f"not confirmed: best of the search, which {confirmation.name} did not re-run"
    return best, f"not confirmed: best of the search, which {confirmation.name} did not find better than the baseline"


def origin_of_unconfirmed(snapshot: Snapshot, best: Trial) -> str:
    """Return in words what the best trial of a search without a confirmation is."""
    return UNCONFIRMED if changed_fields(snapshot, best) else BASELINE


def _latest_confirmation(store: OpenStorage, snapshot: Snapshot) -> Snapshot | None:
    """Return the latest confirmation of this study that has ended."""
    for name, study_id in sorted(study_ids(store).items(), key=lambda item: -item[1]):
        spec = study_attrs(store, study_id).get(SPEC, {})
        if spec.get("about", {}).get("confirms") in snapshot.names:
            confirmation = read_snapshot(store, name)
            if has_ended(confirmation):
                return confirmation
    return None

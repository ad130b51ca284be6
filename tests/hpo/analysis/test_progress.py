"""Which trials of a study competed for the best value."""

from pathlib import Path

import pytest

from hpo.analysis.progress import searched_trials
from hpo.analysis.snapshot import read_snapshot
from hpo.analysis.warnings import study_warnings
from hpo.evidence.confirm import ConfirmRequest, plan_confirmation
from hpo.report.curve_figures import study_progress
from hpo.report.verdict import verdict
from hpo.storage.store import Store
from tests.support.ended_trials import add_trial, register_search

pytestmark = pytest.mark.usefixtures("here")


def test_searched_trials_are_those_that_ended_complete_or_pruned_without_the_baselines(
    store: Store, here: Path
) -> None:
    stored = register_search(store, here, baseline_seeds=3)
    add_trial(stored, 1.50, "baseline", x=0.5)
    add_trial(stored, 1.52, "seed", x=0.5)
    add_trial(stored, 1.48, "seed", x=0.5)
    for i in range(11):
        add_trial(stored, 1.4 + i / 100, pruned=i > 6, x=i / 10)
    snapshot = read_snapshot(store, "planted")
    # Of these 14 trials, the warnings counted 11, the verdict of the report 12 and its figure 12.
    assert [t.number for t in searched_trials(snapshot)] == list(range(3, 14))
    assert list(study_progress(snapshot))[-1].searched == 11
    assert "of 11 searched trials" in verdict(snapshot).headline
    found = "\n".join([*verdict(snapshot).grounds, *study_warnings(snapshot)])
    assert "11 runs of the baseline" in found
    confirmation = plan_confirmation(snapshot, "again", ConfirmRequest("planted", 1, 3, None, None, None), 1000)
    assert confirmation.file.about["among"] == 11


def test_trials_that_never_competed_are_not_searched_ones(store: Store, here: Path) -> None:
    stored = register_search(store, here)
    add_trial(stored, 1.5, "baseline", x=0.5)
    add_trial(stored, 1.4, x=0.4)
    add_trial(stored, None, x=0.3)
    for reason in ("diverged", "invalid", "oom", "timeout"):
        add_trial(stored, 1.6, pruned=True, reason=reason, x=0.2)
    assert [t.number for t in searched_trials(read_snapshot(store, "planted"))] == [1, 3]

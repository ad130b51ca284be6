"""Looks of a sequential comparison: a retry that revokes a decision makes the skipped runs necessary again."""

from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.progress import has_ended, trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.commands.enqueue import retry_trials
from hpo.evidence.confirm import ConfirmRequest, plan_confirmation
from hpo.evidence.confirm_verdicts import confirmation_table
from hpo.queue.looks import take_look
from hpo.queue.registry import register_study
from hpo.storage.store import Store
from hpo.worker.worker import Worker
from tests.support.cases import exhaustive
from tests.support.comparisons import run_search, run_study
from tests.support.planted import edit

pytestmark = pytest.mark.usefixtures("here")

FAILS = 'if config.seed == 1000 and config.x == 0.1 and os.path.exists("broken"):\n        1 / 0\n    for rung in'


def request(top: int) -> ConfirmRequest:
    return ConfirmRequest(study=None, top=top, seeds=None, tokens=None, name=None, test=None, sequential=True)


@pytest.mark.parametrize("top", [exhaustive(1), 2])
def test_a_confirmation_continues_after_the_retry_of_a_failed_run(here: Path, store: Store, top: int) -> None:
    keys: dict[str, Any] = {"space": {"x": {"choices": [0.5, 0.1, 0.3]}}, "sampler": {"name": "grid"}}
    snapshot = run_search(store, here, {"noise": 0.1}, **keys, budget={"trials": 4})
    edit(here, "for rung in", FAILS)
    whole = run_study(store, plan_confirmation(snapshot, "whole", request(top), 1000))
    (here / "broken").touch()
    plan = plan_confirmation(snapshot, "c", request(top), 1000)
    failed = run_study(store, plan)
    assert has_ended(failed)
    assert confirmation_table(failed)[1]["verdict"] == "worse: runs lost"
    (here / "broken").unlink()

    retry_trials(store, "c", None, failed=True)
    stored = register_study(store, plan, None, {})
    take_look(stored)
    assert trial_counts(read_snapshot(store, "c"))["waiting"] == 1, "until the retry has ended, its result is unknown"
    Worker(stored, Path("runs"), 1, lambda event: None).work(max_trials=1)
    take_look(stored)
    retried = read_snapshot(store, "c")
    assert not has_ended(retried)
    done = {arm: sum(t.user_attrs.get("arm") == arm for t in failed.trials) for arm in plan.file.arms or {}}
    first = list(done)[1]
    assert trial_counts(retried)["waiting"] == sum(12 - n for n in done.values()), "Holm's correction links all arms"

    assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
    ended = read_snapshot(store, "c")
    assert has_ended(ended)
    assert confirmation_table(ended) == confirmation_table(whole)
    runs = {arm: sum(t.user_attrs.get("arm") == arm for t in ended.trials) for arm in done}
    expected = {arm: sum(t.user_attrs["arm"] == arm for t in whole.trials) for arm in done}
    assert runs[first] == expected[first] + 1, "each run of the arm ran once, and the failed one twice"
    assert all(runs[arm] == max(done[arm], expected[arm]) for arm in runs if arm != first)
    assert sum(ended.slots.values()) == len(ended.trials)

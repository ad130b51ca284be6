"""hpo why: what was recorded with each decision, the sentence that it makes, and the decision made again."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from hpo.analysis.decisions import decisions, distinct_text, recompute
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.commands.enqueue import enqueue_trial, retry_trials
from hpo.config.yaml import dump_yaml
from hpo.queue.heartbeat import free_leases_of
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.search.pruning_rules import format_spans, parse_spans
from hpo.storage.attributes import END_REASON, ERROR, FIXED_VALUES, PRUNING_DECISION, SUGGESTED_BY
from hpo.storage.engine import open_readonly
from hpo.storage.fencing import LeaseLost, fenced
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.worker.trial import open_trial, trial_config
from hpo.worker.worker import Worker
from tests.support.cases import sparse
from tests.support.command import run_in_process as typed
from tests.support.control import create_study, interrupt_trial, run_worker
from tests.support.planted import planted_study as planted
from tests.support.pruning import LOOSE, loose

pytestmark = pytest.mark.usefixtures("here")

TRACEBACK = "Traceback (most recent call last):\n"

# Curves that go up and down, in tenths, so that values are often equal; some end in no number
WAVY = """

def wavy(config):
    chance = random.Random(config.x)
    for rung in range(1, config.rungs + 1):
        lost = chance.random() < 0.03
        yield rung, float("nan") if lost else round(2 - rung / 20 + chance.gauss(0.0, 0.4), 1)
"""


@pytest.fixture
def sqlite(here: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{here}/why.db", create=True) as store:
        yield store


def wavy(store: Store, here: Path, **keys: Any) -> StoredStudy:
    base = {"rungs": 8, "base": {"rungs": 8}, "train": "curves:wavy", "budget": {"trials": 22}}
    path = planted(here, **base | keys)
    (here / "curves.py").write_text((here / "curves.py").read_text() + WAVY)
    return register_study(store, load_study(str(path)), None, {})


def sentences(snapshot: Snapshot, number: int) -> list[str]:
    return [decision["sentence"] for decision in decisions(snapshot, number)]


@pytest.mark.parametrize("name", sparse(LOOSE, 4))
def test_every_pruning_decision_of_a_study_follows_again_from_its_stored_curves(
    here: Path, storage_url: str, name: str
) -> None:
    with open_store(storage_url, create=True) as store:
        at = wavy(store, here, pruner=loose(name))
        assert Worker(at, Path("runs"), 3, lambda event: None).work() == 0
    with open_readonly(storage_url) as reader:
        snapshot = read_snapshot(reader, "planted")
        pruned = [t for t in snapshot.trials if t.user_attrs[END_REASON] == "pruned"]
        assert len(pruned) > 2
        for trial in pruned:
            record, found = trial.user_attrs[PRUNING_DECISION], recompute(snapshot, trial)
            assert found is not None
            assert found.prunes
            assert (found.value, found.threshold) == (record["value"], record["threshold"])
            assert (record["rule"], record["rung"]) == (loose(name)["name"], trial.last_step)
            assert sentences(snapshot, trial.number)[-1].startswith(
                f"it was pruned at rung {trial.last_step} of 8: its "
            )
            assert len(sentences(snapshot, trial.number)) == 2
        others = [t for t in snapshot.trials if t not in pruned]
        assert others
        assert [t.number for t in others if PRUNING_DECISION in t.user_attrs or recompute(snapshot, t)] == []


def test_a_decision_that_the_stored_curves_do_not_give_is_reported(sqlite: Store, here: Path) -> None:
    at = wavy(sqlite, here, pruner=loose("median"))
    assert Worker(at, Path("runs"), 1, lambda event: None).work() == 0
    snapshot = read_snapshot(sqlite, "planted")
    trial = next(t for t in snapshot.trials if PRUNING_DECISION in t.user_attrs)
    for peer in parse_spans(trial.user_attrs[PRUNING_DECISION]["peers"]):
        snapshot.trials[peer].intermediate_values[trial.last_step or 0] = 99.0
    assert sentences(snapshot, trial.number)[-1].startswith("the stored curves do not reproduce this decision: ")


@pytest.mark.parametrize(
    ("peers", "said"),
    [
        ("finished", "2.00004, was above 2, the median of trials 0, 1, 2, 3, 4, 5, 6, 7, 8 at that rung"),
        (
            "all",
            "2.00004, was above 2; only the best 5 of 10 trials continue (compared with trials "
            "0, 1, 2, 3, 4, 5, 6, 7, 8 at that rung)",
        ),
    ],
)
def test_a_median_sentence_names_value_threshold_and_peers(sqlite: Store, here: Path, peers: str, said: str) -> None:
    points = {"choices": [0.1, 0.2, 0.3, 0.4, 0.50004]}
    grid = {"space": {"x": points}, "sampler": {"name": "grid"}, "baseline": [{"x": 0.5}] * 5}
    pruner = {"name": "median", "startup_trials": 3, "min_trials": 3, "warmup_rungs": 1, "peers": peers}
    stored = create_study(sqlite, here, **grid, budget={"trials": 10}, pruner=pruner)
    assert run_worker(stored) == 0
    snapshot = read_snapshot(sqlite, "planted")
    assert sentences(snapshot, 0) == [
        "trial 0 is a baseline: x=0.5000",
        "it completed all 4 rungs (baselines are never pruned): val_loss 1.5000",
    ]
    assert sentences(snapshot, 9) == [
        "trial 9 is point 5 of the 5 points of sampler grid",
        f"it was pruned at rung 2 of 4: its best val_loss so far, {said}",
    ]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"name": "percentile", "percentile": 75}, "percentile 75 of 20 trials there"),
        (
            {"name": "percentile", "percentile": 75, "peers": "all"},
            "only the best 16 of 21 trials continue (compared with 20 trials at that rung)",
        ),
        ({"name": "halving", "factor": 4}, "only the best 5 of 21 trials continue (compared with 20 trials)"),
        ({"name": "patient", "patience": 2, "min_delta": 0.5}, "its best before plus 0.5"),
        ({"name": "patient", "patience": 2, "min_delta": 0.0}, "its best before"),
        ({"name": "threshold", "lower": 0.0, "upper": 1.9}, "above the study's threshold"),
        ({"name": "wilcoxon", "p_threshold": 0.1}, "was worse than that of 20 trials, the best trial then: p = 2.1"),
    ],
)  # fmt: skip
def test_each_rule_has_its_sentence(sqlite: Store, here: Path, rule: dict[str, Any], said: str) -> None:
    stored = create_study(sqlite, here)
    record = {"rule": rule["name"], "rung": 2, "value": 2.1, "threshold": 1.9, "n": 20, "peers": "1-20"}
    ended(stored, TrialState.PRUNED, "pruned", **{PRUNING_DECISION: record})
    found = read_snapshot(sqlite, "planted")
    of = replace(found, spec={**found.spec, "pruner": rule}, trials=[*found.trials, *copies(found, 20)])
    sentence = sentences(of, 0)[1]
    assert said in sentence
    assert sentence.index("2.1") < sentence.index("1.9")


def copies(snapshot: Snapshot, n: int) -> list[Any]:
    return [replace(snapshot.trials[0], number=number) for number in range(1, n + 1)]


def ended(stored: StoredStudy, state: TrialState, word: str, rungs: int = 2, **attrs: Any) -> int:
    """Put a trial into the study that ended in this way."""
    told = {"slot": 0, "kind": "search", "attempt": 1, END_REASON: word, **attrs}
    told = {key: value for key, value in told.items() if value is not None}
    curve = {rung: 3.0 - rung / 4 for rung in range(1, rungs + 1)}
    value = [curve[rungs]] if state != TrialState.FAIL and rungs else None
    drawn = {"params": {"x": 0.5}, "distributions": {"x": stored.study.file.space["x"].distribution(float)}}
    trial = create_trial(state=state, values=value, user_attrs=told, intermediate_values=curve, **drawn)
    return stored.store.optuna.create_new_trial(stored.optuna._study_id, trial)


@pytest.mark.parametrize(
    ("state", "word", "error", "said"),
    [
        (TrialState.COMPLETE, "complete", "", "it completed all 4 rungs: val_loss 2.5000"),
        (TrialState.PRUNED, "pruned", "", "it was pruned at rung 2 of 4; the comparison was not recorded"),
        (TrialState.PRUNED, "diverged", "", "it diverged at rung 2 of 4: its val_loss is not finite"),
        (TrialState.PRUNED, "invalid", "x: must be at most 1", "values are invalid together: x: must be at most 1"),
        (TrialState.PRUNED, "oom", TRACEBACK + "no room", "because it needs more memory than is available: no room"),
        (TrialState.PRUNED, "timeout", "limits.seconds: allows 5", "because it exceeded its time limit: limits"),
        (TrialState.FAIL, "killed", "", "it was killed by the user at rung 2 of 4"),
        (TrialState.FAIL, "lost", "5 attempts", "it was abandoned at rung 2 of 4: 5 attempts"),
        (TrialState.FAIL, "error", TRACEBACK + "ZeroDivisionError: 0", "failed at rung 2 of 4: ZeroDivisionError: 0"),
    ],
)  # fmt: skip
def test_each_end_has_its_sentence_and_a_trial_without_a_record_says_so(
    sqlite: Store, here: Path, state: TrialState, word: str, error: str, said: str
) -> None:
    stored = create_study(sqlite, here)
    ended(stored, state, word, **({ERROR: error} if error else {}))
    first, last = sentences(read_snapshot(sqlite, "planted"), 0)
    assert first == "trial 0 has no record of how its parameters were chosen"
    assert said in last


def test_what_came_by_hand_from_another_study_or_on_a_seed_says_so(sqlite: Store, here: Path) -> None:
    stored = create_study(sqlite, here, baseline_seeds=2, budget={"trials": 3}, sampler={"name": "qmc"})
    ended(stored, TrialState.FAIL, "error", slot=None, **{FIXED_VALUES: {"x": 0.25}})
    ended(stored, TrialState.PRUNED, "pruned", kind="forked", slot=None, forked_from="old/one/7")
    enqueue_trial(sqlite, "planted", ["x=0.3"])
    retry_trials(sqlite, "planted", 0, False)
    assert run_worker(stored) == 0
    snapshot = read_snapshot(sqlite, "planted")
    assert sorted(sentences(snapshot, n)[0].partition(" ")[2].partition(" ")[2] for n in range(1, 7)) == [
        "is a baseline: the base configuration",
        "is the next point of sampler qmc, which does not depend on other trials",
        "repeats the baseline with another seed, to measure the noise: seed=1",
        "retries trial 0, which ended with status error",
        "was copied from trial 7 of study old/one",
        "was enqueued by the user: x=0.3000",
    ]


def test_an_arm_and_a_random_draw_say_so(sqlite: Store, here: Path) -> None:
    stored = create_study(sqlite, here, budget={"trials": 2})
    assert run_worker(stored) == 0
    assert sentences(read_snapshot(sqlite, "planted"), 1)[0] == "trial 1 was drawn at random"
    tree = {"train": "curves:train", "config": "curves:Config", "rungs": 4}
    (here / "arms.yaml").write_text(dump_yaml({**tree, "arms": {"a": {}, "b": {"x": 0.1}}, "seeds": [3]}))
    assert run_worker(register_study(sqlite, load_study("arms.yaml"), None, {})) == 0
    assert sentences(read_snapshot(sqlite, "arms"), 1) == [
        "trial 1 is the run of arm b with seed 3",
        "it completed all 4 rungs (arms are never pruned): val_loss 1.1000",
    ]


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "tpe", "startup_trials": 3},
        {"name": "tpe", "startup_trials": 3, "multivariate": False},
        {"name": "gp", "startup_trials": 3},
    ],
)
def test_a_sampler_draws_at_random_until_it_knows_enough_trials_and_says_what_it_knew(
    sqlite: Store, here: Path, sampler: dict[str, Any]
) -> None:
    stored = create_study(sqlite, here, sampler=sampler, budget={"trials": 6}, pruner={"name": "none"})
    assert run_worker(stored) == 0
    of, name = read_snapshot(sqlite, "planted"), sampler["name"]
    told = [sentences(of, number)[0] for number in range(1, 6)]
    assert told[1] == f"trial 2 was drawn at random, because {name} needs 3 finished trials and had 2 (0 running)"
    assert told[4] == f"trial 5 was suggested by {name} from 5 finished trials, 0 running"
    assert [" at random" in text for text in told] == [True, True, False, False, False]


def test_auto_says_what_it_took_and_why_and_which_fields_follow_their_priors(sqlite: Store, here: Path) -> None:
    space = {"x": {"low": 0.0, "high": 1.0, "prior": {"at": 0.4, "trust": "strong"}}}
    rule = {"name": "auto", "startup_trials": 3, "gp_trials": 4}
    stored = create_study(sqlite, here, space=space, sampler=rule, budget={"trials": 7}, pruner={"name": "none"})
    assert run_worker(stored) == 0
    snapshot = read_snapshot(sqlite, "planted")
    records = [trial.user_attrs[SUGGESTED_BY] for trial in snapshot.trials[1:]]
    assert [record["by"] for record in records] == ["sobol", "sobol", "gp", "gp", "tpe", "tpe"]
    told = [sentences(snapshot, number)[0].partition("; ")[0] for number in range(1, 7)]
    assert told[0] == (
        "trial 1 is a point of a Sobol design: sampler auto took sobol, because fewer than 3 trials had finished"
    )
    assert told[2] == (
        "trial 3 was suggested by gp from 3 finished trials, 0 running: sampler auto took gp, because at most 20 "
        "fields vary, and there were at most 4 finished trials to learn from"
    )
    assert told[5].endswith("sampler auto took tpe, because there were more than 4 finished trials to learn from")
    followed = [" follows the prior of x (0.4000, strong)" in sentences(snapshot, number)[0] for number in range(1, 7)]
    assert followed == ["prior" in record for record in records]
    assert 0 < sum(followed) < 6


def test_the_record_of_a_draw_counts_the_trials_that_run_beside_it(sqlite: Store, here: Path) -> None:
    stored = create_study(sqlite, here, sampler={"name": "tpe"}, pruner={"name": "none"})
    assert Worker(stored, Path("runs"), 4, lambda event: None).work() == 0
    found = [t.user_attrs[SUGGESTED_BY] for t in read_snapshot(sqlite, "planted").trials]
    assert [record["running"] for record in found[1:4]] == [1, 2, 3]
    assert [record["finished"] for record in found[1:4]] == [0, 0, 0]


def test_a_draw_and_its_record_are_those_of_one_attempt(sqlite: Store, here: Path) -> None:
    stored = create_study(
        sqlite, here, sampler={"name": "tpe"}, baseline=[], budget={"trials": 3}, pruner={"name": "none"}
    )
    interrupt_trial(stored)
    first = read_snapshot(sqlite, "planted").trials[0]
    before = first.user_attrs[SUGGESTED_BY], first.params
    ended(stored, TrialState.COMPLETE, "complete", slot=77)
    assert run_worker(stored) == 0
    snapshot = read_snapshot(sqlite, "planted")
    assert (snapshot.trials[0].user_attrs[SUGGESTED_BY], snapshot.trials[0].params) == before
    assert sentences(snapshot, 0)[1:] == [
        "attempt 1 was interrupted: preempted",
        f"it completed all 4 rungs: val_loss {snapshot.trials[0].values[0]:.4f}",
    ]


def test_who_has_lost_its_lease_leaves_no_record(sqlite: Store, here: Path) -> None:
    stored = create_study(sqlite, here, baseline=[])
    claim = stored.slots.claim("slow", 60)
    assert claim is not None
    trial = open_trial(stored, claim, "slow", 1)
    free_leases_of(sqlite, "slow", "it was gone")
    with pytest.raises(LeaseLost), fenced(stored.slots.held(claim, "slow")):
        trial_config(stored, claim, trial)
    assert not {SUGGESTED_BY, "x"} & {*stored.optuna.trials[0].user_attrs, *stored.optuna.trials[0].params}


def test_the_command_prints_sentences_for_people_and_records_for_programs(sqlite: Store, here: Path) -> None:
    stored = create_study(sqlite, here, budget={"trials": 1})
    assert run_worker(stored) == 0
    words = ["why", "0", "--storage", f"sqlite:///{here}/why.db"]
    assert typed(*words, cwd=here) == (
        "trial 0 is a baseline: the base configuration\n"
        "it completed all 4 rungs (baselines are never pruned): val_loss 1.5000\n"
    )
    found = json.loads(typed(*words, "--format", "json", cwd=here))
    assert [(line["trial"], line["decision"], line["record"]) for line in found] == [
        (0, "suggested", {"by": "baseline"}),
        (0, "complete", {}),
    ]


def test_a_trial_that_has_not_ended_says_where_it_stands(sqlite: Store, here: Path) -> None:
    stored = create_study(sqlite, here, budget={"trials": 2})
    interrupt_trial(stored)
    snapshot = read_snapshot(sqlite, "planted")
    assert snapshot.trials[0].state == State.WAITING
    assert sentences(snapshot, 0)[-1] == "it was interrupted at rung 1 of 4; the next worker resumes it"
    claim = stored.slots.claim("other", 60)
    assert claim is not None
    open_trial(stored, claim, "other", 1)
    assert sentences(read_snapshot(sqlite, "planted"), 0)[-1] == "it is running, at rung 1 of 4"


@example(2.0, 2.00004)
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_two_numbers_that_differ_are_printed_differently_and_in_their_order(a: float, b: float) -> None:
    told = [float(text.replace(",", "")) for text in distinct_text(a, b)]
    assert (told[0] < told[1], told[0] == told[1]) == (a < b, a == b)
    assert all(math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-4) for x, y in zip(told, (a, b), strict=True))


@given(st.lists(st.integers(0, 60), unique=True))
def test_numbers_folded_to_text_unfold_again(numbers: list[int]) -> None:
    assert parse_spans(format_spans(numbers)) == sorted(numbers)
    assert format_spans([0, 2, 3, 4, 9]) == "0, 2-4, 9"

"""Curves of a real study, what its pruner risked, and `hpo replay` of it."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.errors import NothingFeasible, Problem
from hpo.replay.measures import record
from hpo.replay.risk import pruning_risk, sampled
from hpo.replay.simulation import Search, simulate
from hpo.replay.study_curves import curves_of_study
from hpo.replay.worlds import Recorded
from hpo.report.risk import risk_section
from hpo.search.pruners import Median
from hpo.storage.store import open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from tests.support.command import run_in_process
from tests.support.comparisons import run_study
from tests.support.planted import planted_study

URL = "sqlite:///hpo.db"
RULE = {"name": "median", "warmup_rungs": 1, "startup_trials": 5, "peers": "all"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished study, the current one of every test of this module."""
    path = tmp_path_factory.mktemp("replayed")
    with pytest.MonkeyPatch.context() as patch, open_store(f"sqlite:///{path}/hpo.db", create=True) as store:
        patch.chdir(path)
        keys: dict[str, Any] = {"budget": {"trials": 24}, "baseline_seeds": 2, "base": {"noise": 0.05}, "pruner": RULE}
        run_study(store, load_study(str(planted_study(path, **keys))))
        yield path
    sys.modules.pop("curves", None)


@pytest.fixture
def snapshot(folder: Path) -> Iterator[Snapshot]:
    with open_store(URL) as store:
        yield read_snapshot(store, None)


def test_curves_are_those_of_the_trials_and_stop_where_a_trial_was_pruned(snapshot: Snapshot) -> None:
    curves = curves_of_study(snapshot)
    assert (len(curves.config), len(curves.params)) == (24, 23)  # two runs of the baseline
    assert curves.config[0] == curves.config[1]
    assert curves.fixed is not None
    assert list(curves.fixed) == [True, True] + [False] * 22
    for trial, values, known in zip(snapshot.own, curves.values, curves.known, strict=True):
        expected = [trial.intermediate_values.get(rung, math.nan) for rung in range(1, 5)]
        assert values == pytest.approx(expected, nan_ok=True)
        assert known == (trial.state == State.COMPLETE)
    assert 5 < (~curves.known).sum() < 19
    assert curves.params[0] == {"x": 0.5}


def test_replay_of_the_own_rule_ends_the_same_trials(snapshot: Snapshot) -> None:
    world = Recorded(curves_of_study(snapshot))
    outcome = simulate(world, Search(None, Median.model_validate(RULE), workers=1), seed=0)
    states = {"complete": State.COMPLETE, "pruned": State.PRUNED}
    assert [states[trial.state] for trial in outcome.trials] == [trial.state for trial in snapshot.own]
    assert outcome.spent == sum(trial.last_step or 0 for trial in snapshot.own)


def test_what_another_rule_would_have_found_is_not_known_of_pruned_trials(snapshot: Snapshot) -> None:
    from hpo.search.pruners import NoPruning

    world = Recorded(curves_of_study(snapshot))
    n_pruned = len(snapshot.in_state(State.PRUNED))
    kept = record(world, simulate(world, Search(None, NoPruning()), seed=0), seed=0)
    assert kept["unknown"] == n_pruned
    assert sum(group[0] for group in kept["groups"]) == 24 - n_pruned


def test_risk_counts_what_is_not_known_and_compares_pruned_trials_with_their_equals(snapshot: Snapshot) -> None:
    risk = pruning_risk(snapshot)
    pruned = snapshot.in_state(State.PRUNED)
    assert (risk.n_known, risk.n_pruned) == (24 - len(pruned), len(pruned))
    assert 0 <= risk.lost.low <= risk.lost.value <= risk.lost.high <= 1
    searched = [t for t in snapshot.own if t.state == State.COMPLETE and snapshot.kind(t) == "search"]
    for one in risk.judged:
        trial = snapshot.trials[one.number]
        value = trial.intermediate_values[one.rung]
        equals = [t.values[0] for t in searched if t.intermediate_values[one.rung] >= value]
        assert (one.rung, one.n_as_bad, one.best) == (trial.last_step, len(equals), min(equals, default=None))
    assert sorted(one.number for one in risk.judged) == [t.number for t in pruned]


def test_report_says_what_pruning_risked(snapshot: Snapshot) -> None:
    section = "".join(risk_section(snapshot))
    assert "What pruning risked" in section
    assert f"The results of {len(snapshot.in_state(State.PRUNED))} pruned trials are not known" in section
    assert "of the best tenth (20 random orders)" in section


def test_long_study_is_sampled_evenly(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.replay.risk.MAX_TRIALS", 12)
    curves = curves_of_study(snapshot)
    few = sampled(curves)
    assert len(few.config) == 12
    for config, values in zip(few.config, few.values, strict=True):
        index = np.flatnonzero([np.array_equal(values, other, equal_nan=True) for other in curves.values])[0]
        assert few.params[config] == curves.params[curves.config[index]]


def replay(*options: str) -> Any:
    return json.loads(run_in_process("replay", "--storage", URL, "--format", "json", *options, cwd=Path()))


@pytest.mark.usefixtures("folder")
def test_command_compares_pruners_on_a_study(tmp_path: Path) -> None:
    html = tmp_path / "replay.html"
    found = replay(
        "--pruner", "{name: percentile, percentile: 90}", "--pruner", "none", "--seeds", "4", "--html", str(html)
    )
    assert [(row["world"], row["rules"]) for row in found["searches"]] == [
        (world, rules)
        for world in ("recorded", "shuffled")
        for rules in ("median (warmup_rungs=1)", "percentile (percentile=90.0)", "none")
    ]
    own, lenient, none = found["searches"][:3]
    assert own["tokens"] <= lenient["tokens"] <= none["tokens"]
    assert own["pruned"] > 0.2
    assert none["pruned"] == 0
    assert found["curves"]["known"] < found["curves"]["runs"] == 24
    assert [row["rung"] for row in found["rank"]] == [1, 2, 3, 4]
    page = html.read_text()
    assert "Replay of study planted" in page
    assert page.count('class="plotly-graph-div"') == 5


@pytest.mark.usefixtures("folder")
def test_command_tries_samplers_in_worlds_that_answer_any_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.replay.worlds.MIN_CONFIGURATIONS", 5)
    found = replay("--sampler", "tpe", "--pruner", "none", "--seeds", "2", "--trials", "6")
    assert [row["world"] for row in found["searches"]] == ["surrogate"] * 2 + ["nearest"] * 2
    assert {row["trials"] for row in found["searches"]} == {6.0}
    assert found["searches"][1]["rules"] == "tpe, none"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pruner", "{name: percentile, percentile: 120}"), "--pruner.percentile: must be less than 100, got 120"),
        (("--pruner", "medain"), "--pruner.name"),
        (("--world", "surrogate"), "--world: must be recorded or shuffled without --sampler, got surrogate"),
        (("--world", "real"), "--world: must be one of recorded, shuffled, nearest, surrogate, got 'real'"),
        (("--trials", "3", "--runs", "3"), "--runs: must be omitted with --trials"),
        (("--curves", "planted.yaml", "--study", "planted"), "--curves: must be omitted with --study"),
        (("--curves", "none.yaml"), "none.yaml: cannot be read"),
    ],
)
def test_wrong_options_are_one_clear_message(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(Problem) as raised:
        replay(*options)
    assert message in str(raised.value)


def test_study_without_a_finished_trial_cannot_be_replayed(snapshot: Snapshot) -> None:
    snapshot.trials.clear()
    with pytest.raises(NothingFeasible, match="no trial has ended yet"):
        curves_of_study(snapshot)

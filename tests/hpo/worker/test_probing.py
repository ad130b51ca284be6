"""Workers of studies with cool-down probes: values, budget, interruptions, `probe: auto`, and what commands show."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.decisions import decisions
from hpo.analysis.export import export_text
from hpo.analysis.progress import has_ended, token_counts
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.status import status_text
from hpo.analysis.summary import summary
from hpo.commands.show import trial_record
from hpo.config.files import read_config
from hpo.config.yaml import dump_yaml
from hpo.errors import Interruption, Problem
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.runs.datasets import describe_data
from hpo.runs.metrics import read_rungs
from hpo.storage.attributes import END_REASON, MARKS, PROBE_PLAN, PROBE_TOKENS, PROBES, SPEC
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State, Trial
from hpo.study.load import load_study
from hpo.study.stored import study_from_spec
from hpo.worker.worker import Worker
from model.config import TrainConfig
from model.section import updated
from model.train.trainer import Trainer
from tests.support.cases import exhaustive
from tests.support.study_files import edited, write
from tests.support.tiny import UPDATE, alone, tiny

pytestmark = pytest.mark.usefixtures("here")

LRS = [3e-3, 1e-2, 1e-3, 3e-2, 5e-4, 2e-2]
MEDIAN = {"name": "median", "startup_trials": 2, "min_trials": 2}
BASE = {"run.tokens": 24 * UPDATE, "run.rungs": 4, "schedule.name": "wsd", "schedule.warmup": 0.0}
PROBED: dict[str, Any] = {"rungs": [1, 2], "share": 0.125}


@pytest.fixture
def sqlite(here: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{here}/probes.db", create=True) as store:
        yield store


def create(store: Store, here: Path, name: str, **keys: Any) -> StoredStudy:
    tree = {
        "base": tiny(BASE).model_dump(mode="json"),
        "space": {"optimizer.lr": {"choices": LRS}},
        "sampler": "grid",
        "baseline": [],
        "pruner": MEDIAN,
        "probe": PROBED,
        "budget": {"trials": len(LRS)},
        **keys,
    }
    (here / f"{name}.yaml").write_text(dump_yaml(tree))
    study = load_study(f"{name}.yaml")
    return register_study(store, study, *describe_data(study.base))


def work(stored: StoredStudy, pack: int = 1) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    Worker(stored, Path("runs"), pack, events.append).work()
    return events


def content(snapshot: Snapshot) -> list[tuple[Any, ...]]:
    return [
        (t.state, t.intermediate_values, t.user_attrs.get(PROBES), t.user_attrs.get(PROBE_TOKENS))
        for t in trials_of(snapshot)
    ]


def trials_of(snapshot: Snapshot) -> list[Trial]:
    return sorted(snapshot.trials, key=lambda t: t.number)


def test_a_probed_trial_has_the_curve_of_a_run_without_probes_and_is_pruned_by_its_probes(
    sqlite: Store, here: Path
) -> None:
    events = work(create(sqlite, here, "probed"))
    snapshot = read_snapshot(sqlite, "probed")
    trials = trials_of(snapshot)
    for t in trials:
        curve = [m.val_loss for m in alone(tiny(BASE | {"optimizer.lr": t.params["optimizer.lr"]}))]
        assert list(t.intermediate_values.values()) == curve[: t.last_step]
        assert set(t.user_attrs[PROBES]) == {str(r) for r in (1, 2) if r <= (t.last_step or 0)}
        assert t.user_attrs[PROBE_TOKENS] == 3 * UPDATE * len(t.user_attrs[PROBES])
    pruned = [t for t in trials if t.state == State.PRUNED]
    assert pruned
    assert {t.last_step for t in pruned} <= {1, 2}
    sentence = decisions(snapshot, pruned[0].number)[-1]["sentence"]
    probe = pruned[0].user_attrs[PROBES][str(pruned[0].last_step)]
    assert f"its best probe_val_loss so far, {probe:.4f}, was above" in sentence
    assert [e["rung"] for e in events if e["event"] == "probe" and e["trial"] == trials[0].number] == [1, 2]

    rows = read_rungs(here / "runs/probed/trials/0000/metrics.jsonl", "val_loss", trials[0].intermediate_values)
    assert rows[2]["probe_val_loss"] == trials[0].user_attrs[PROBES]["2"]
    assert rows[2]["probe_tokens"] == 3 * UPDATE
    assert "probe_val_loss" not in rows[3]
    status = status_text(snapshot)
    tokens = sum(t.user_attrs[PROBE_TOKENS] for t in trials)
    assert f"({tokens:,} of them in probes)" in status
    assert "probes: at rungs 1, 2, 0.125 of a run each, because the study file states it" in status
    assert summary(snapshot)["probes"]["tokens"] == token_counts(snapshot)["probes"] == tokens
    assert trial_record(snapshot, 0)["probes"] == trials[0].user_attrs[PROBES]


@pytest.mark.parametrize(("pack", "pruner"), [(1, MEDIAN), exhaustive(3, {"name": "asha", "factor": 2})])
def test_a_trial_interrupted_inside_a_probe_resumes_at_its_rung_and_ends_the_same(
    sqlite: Store, here: Path, monkeypatch: pytest.MonkeyPatch, pack: int, pruner: dict[str, Any]
) -> None:
    work(create(sqlite, here, "calm", pruner=pruner), pack)
    stored = create(sqlite, here, "stormy", pruner=pruner)
    probe, calls = Trainer.probe, []

    def interrupted(trainer: Trainer, shares: Any) -> Any:
        calls.append(shares)
        if len(calls) % 2:
            monkeypatch.setattr(trainer.validation, "evaluate", interrupt)
        return probe(trainer, shares)

    def interrupt() -> None:
        raise Interruption

    monkeypatch.setattr(Trainer, "probe", interrupted)
    attempts = 0
    while not has_ended(read_snapshot(sqlite, "stormy")):
        attempts += 1
        try:
            assert not [e for e in work(stored, pack) if e["event"] == "restarted"]
        except Interruption:
            continue
    assert attempts > 2
    calm, stormy = read_snapshot(sqlite, "calm"), read_snapshot(sqlite, "stormy")
    if pack == 1:
        assert content(stormy) == content(calm)
    for a, b in zip(trials_of(stormy), trials_of(calm), strict=True):
        assert set(a.user_attrs[PROBES]) <= {"1", "2"}
        shared = a.intermediate_values.keys() & b.intermediate_values.keys()
        assert [a.intermediate_values[r] for r in shared] == pytest.approx([b.intermediate_values[r] for r in shared])


def test_asha_pauses_and_promotes_by_probes_at_probed_marks_only(sqlite: Store, here: Path) -> None:
    work(create(sqlite, here, "asha", pruner={"name": "asha", "factor": 2}, probe={"rungs": [2], "share": 0.125}))
    snapshot = read_snapshot(sqlite, "asha")
    records = [record for t in snapshot.trials for record in t.user_attrs[MARKS]]
    assert {record["rung"] for record in records} == {2}  # rung 1 is a mark without a probe
    reached = sorted(snapshot.trials, key=lambda t: t.user_attrs[PROBES]["2"])
    assert {t.number for t in reached[:3]} == {t.number for t in snapshot.trials if t.last_step == 4}
    for t in snapshot.trials:
        rows = decisions(snapshot, t.number)
        assert not [row for row in rows if row["decision"] == "recomputed"]
        assert any("its probe_val_loss" in row["sentence"] for row in rows)


def test_a_trial_whose_probe_diverges_pauses_without_a_value(sqlite: Store, here: Path) -> None:
    spike = {"clip.name": "none", "run.spike_every": 13, "run.spike_scale": 1e38}  # at the first update after rung 2
    base = tiny(BASE | spike).model_dump(mode="json")
    asha = {"name": "asha", "factor": 2}
    events = work(create(sqlite, here, "wild", base=base, pruner=asha, probe={"rungs": [2], "share": 0.125}))
    paused = [event for event in events if event["event"] == "paused"]
    assert paused
    assert all(event["value"] is None for event in paused)
    assert json.dumps(events, allow_nan=False)
    snapshot = read_snapshot(sqlite, "wild")
    assert "its probe_val_loss, inf, ranked 1 of 1" in decisions(snapshot, 0)[1]["sentence"]


def test_a_trial_that_is_killed_on_its_way_to_its_first_probe_ends_alone(sqlite: Store, here: Path) -> None:
    stored = create(sqlite, here, "killed", pruner={"name": "asha", "factor": 2})

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "start" and event["trial"] == 0:
            stored.slots.request_action(0, "kill")

    Worker(stored, Path("runs"), 2, kill).work()
    ends = [t.user_attrs[END_REASON] for t in trials_of(read_snapshot(sqlite, "killed"))]
    assert ends[0] == "killed"
    assert set(ends[1:]) <= {"complete", "pruned"}


def test_the_tokens_of_probes_count_in_the_budget(sqlite: Store, here: Path) -> None:
    keys = {"space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2}}, "sampler": "random"}
    budget = {"budget": {"tokens": 26 * 6 * UPDATE}, "pruner": {"name": "asha", "factor": 2}}
    stored = create(sqlite, here, "tokens", **keys, **budget)
    work(stored)
    snapshot = read_snapshot(sqlite, "tokens")
    probes = sum(len(t.user_attrs[PROBES]) for t in snapshot.trials)
    trained = sum(t.last_step or 0 for t in snapshot.trials)
    assert trained + probes / 2 <= stored.slots.rungs() <= 26  # a probe is half a rung; a trial is rounded up
    assert stored.slots.rungs() > 26 - 5
    assert has_ended(snapshot)


def test_auto_decides_by_the_number_of_updates_stores_it_and_says_so(
    sqlite: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.search.probes.AUTO_UPDATES", 24)
    stored = create(sqlite, here, "long", probe="auto")
    assert stored.optuna.user_attrs[PROBE_PLAN] == {}
    events = work(stored)
    snapshot = read_snapshot(sqlite, "long")
    text = "probes: at rungs 1, 2, 0.05 of a run each, because runs of 24 updates, 24 or more, rank badly by raw losses"
    assert text in [e.get("text") for e in events]
    assert text in status_text(snapshot)
    assert all("1" in t.user_attrs[PROBES] for t in snapshot.trials)
    monkeypatch.undo()
    assert stored.study.probe_plan(stored.optuna.user_attrs[PROBE_PLAN])[:2] == ((1, 2), 0.05)  # type: ignore[index]


def test_auto_leaves_short_runs_alone_whose_raw_losses_rank_well(sqlite: Store, here: Path) -> None:
    keys = {"space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2}}, "sampler": "random", "budget": {"trials": 9}}
    create_keys = keys | {"pruner": MEDIAN | {"startup_trials": 8}, "probe": "auto"}
    work(create(sqlite, here, "short", **create_keys))
    snapshot = read_snapshot(sqlite, "short")
    assert not any(PROBES in t.user_attrs for t in snapshot.trials)
    assert "probes: off, because raw losses at rung 1 of 8 finished runs have rank correlation" in status_text(snapshot)


def test_a_stored_study_of_an_earlier_version_is_not_probed(sqlite: Store, here: Path) -> None:
    stored = create(sqlite, here, "old", probe="auto")
    spec = dict(stored.optuna.user_attrs[SPEC])
    del spec["probe"]
    assert study_from_spec(spec).file.probe == "off"
    assert load_study(write(edited("seed", 1))).file.probe == "auto"


def test_the_branch_of_a_wsd_run_is_the_run_that_the_probe_has_scored(sqlite: Store, here: Path) -> None:
    work(create(sqlite, here, "branch", budget={"trials": 1}))
    snapshot = read_snapshot(sqlite, "branch")
    (trial,) = snapshot.trials
    (here / "branch-2.yaml").write_text(export_text(snapshot, trial, cool_down=2))
    tree, origin = read_config(here / "branch-2.yaml")
    config = TrainConfig.model_validate(tree)
    assert config.marks()[-1] == 15  # 12 updates of the trunk and 3 of the probe
    assert (origin["value"], origin["cool_down"]) == (trial.user_attrs[PROBES]["2"], 2)
    assert alone(updated(config, {"run.device": "cpu"}))[-1].val_loss == pytest.approx(origin["value"], rel=1e-6)
    with pytest.raises(
        Problem, match=r"--cool-down: must be a rung in the constant phase of the run, one of 1, 2, 3, got"
    ):
        export_text(snapshot, trial, cool_down=4)


REFUSED = [
    ({"rungs": [4]}, {}, "probe.rungs: must be below 4, the last rung of a run, got 4"),
    ({"rungs": [1, 1]}, {}, "probe.rungs: must be distinct, got 1, 1"),
    (
        {"rungs": [3], "share": 0.3},
        {},
        "must be at most 0.25, what is left of a run after rung 3, got 0.3",
    ),
    ({"rungs": [3]}, {"pruner": {"name": "asha"}}, "at which pruner asha may stop a trial (1, 2), got 3"),
    ({"rungs": [1]}, {"pruner": {"name": "median", "warmup_rungs": 2}}, "at which pruner median may stop a trial (3)"),
    ({"share": 0.1}, {}, "probe.rungs"),
    ("on", {}, "probe: "),
    ({"rungs": [1], "share": 0.25}, {"budget": {"tokens": 8192}}, "budget.tokens: must be at least 10240"),
]


@pytest.mark.parametrize(("probe", "keys", "said"), REFUSED)
def test_a_wrong_probe_is_refused_by_its_key(probe: Any, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(Problem) as error:
        load_study(write({**edited("probe", probe), **keys}))
    lines = [line for line in str(error.value).splitlines() if "probe" in line or "budget" in line]
    assert len(lines) == 1
    assert said in lines[0]


def test_a_probe_of_a_training_function_of_the_user_is_refused_and_auto_is_off(here: Path, sqlite: Store) -> None:
    from tests.support.control import create_study

    with pytest.raises(Problem, match="probe: must be off or omitted with a training function of your own"):
        create_study(sqlite, here, probe={"rungs": [1]})
    stored = create_study(sqlite, here, probe="auto", budget={"trials": 2})
    work(stored)
    assert "probes" not in summary(read_snapshot(sqlite, "planted"))

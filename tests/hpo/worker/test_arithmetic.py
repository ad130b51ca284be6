"""All trials of a study are trained with the same arithmetic, and results of another engine are named as such."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hpo.analysis.export import export_text
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.warnings import study_warnings
from hpo.commands.fork import fork_study
from hpo.commands.show import trial_record
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.errors import Problem
from hpo.evidence.comparison import first_new_seed
from hpo.evidence.confirm import ConfirmRequest, plan_confirmation
from hpo.evidence.paired import compare_arms
from hpo.optuna_internals.tables import TRIAL_USER_ATTRS
from hpo.queue.compatibility import check_engine_of_pairs
from hpo.queue.registry import load_stored_study, register_study
from hpo.queue.stored_study import StoredStudy
from hpo.runs.datasets import describe_data
from hpo.search.samplers import Grid
from hpo.storage.attributes import ARITHMETIC, MACHINE
from hpo.storage.store import Store, open_store
from hpo.storage.studies import fill_attr
from hpo.study.arithmetic import with_arithmetic
from hpo.study.load import load_study
from hpo.study.spec import Budget, Study
from hpo.study.stored import study_from_spec
from hpo.worker import pack
from hpo.worker.arithmetic import settle_arithmetic
from hpo.worker.worker import Worker
from model.config import ENGINE
from model.section import flat
from model.train.device import best_device
from tests.support.tiny import UPDATE, tiny

CPU = {"run.device": "cpu", "run.precision": "fp32", "run.compile": "off", "run.attention": "auto"}
CUDA = {"run.device": "cuda", "run.precision": "bf16", "run.compile": "on", "run.attention": "auto"}

pytestmark = pytest.mark.usefixtures("here")


def gpt(here: Path, space: dict | None = None, **base: object) -> Study:
    """Return a study of two GPT trials whose device is `auto`."""
    values = {"run.device": "auto", "run.rungs": 2, "run.tokens": 4 * UPDATE, **base}
    tree = {
        "base": tiny(values).model_dump(mode="json"),
        "space": space or {"optimizer.lr": {"low": 1e-4, "high": 1e-2}},
    }
    (here / "gpt.yaml").write_text(dump_yaml({**tree, "budget": {"trials": 2}, "pruner": {"name": "none"}}))
    return load_study("gpt.yaml")


def registered(store: Store, study: Study) -> StoredStudy:
    return register_study(store, study, *describe_data(study.base))


def trained(store: Store, study: Study) -> Snapshot:
    """Run a study as `hpo worker` does; return its snapshot."""
    stored = settle_arithmetic(registered(store, study), lambda event: None)
    assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
    return read_snapshot(store, study.name)


def as_engine(store: Store, snapshot: Snapshot, engine: int | None, *numbers: int) -> Snapshot:
    """Have some trials trained by an engine, and return the snapshot; None: by a version without engines."""
    columns, number = TRIAL_USER_ATTRS.c, {} if engine is None else {"engine": engine}
    for trial in (t for t in snapshot.trials if t.number in numbers):
        machine = {k: v for k, v in trial.user_attrs[MACHINE].items() if k != "engine"} | number
        this = sa.and_(columns.trial_id == trial.user_attrs.trial_id, columns.key == MACHINE)
        change = sa.update(TRIAL_USER_ATTRS).where(this).values(value_json=json.dumps(machine))
        with store.engine.begin() as connection:
            connection.execute(change)
    return read_snapshot(store, snapshot.name)


@pytest.mark.skipif(best_device() != "cpu", reason="auto stands for another device here")
def test_the_first_worker_resolves_what_all_trials_the_export_the_confirmation_and_a_fork_use(
    here: Path, store: Store
) -> None:
    snapshot = trained(store, gpt(here))
    assert snapshot.arithmetic == CPU
    for number in (0, 1):
        config = parse_yaml((here / f"runs/gpt/trials/000{number}/config.yaml").read_text())
        assert {f"run.{key}": value for key, value in config["run"].items() if f"run.{key}" in CPU} == CPU
        assert snapshot.trials[number].user_attrs[MACHINE]["engine"] == ENGINE
    exported = parse_yaml(export_text(snapshot, snapshot.trials[0]))
    assert (exported["run"]["device"], exported["run"]["compile"]) == ("cpu", "off")
    assert exported["provenance"]["engine"] == ENGINE
    request = ConfirmRequest(None, 1, 6, None, None, None)
    plan = plan_confirmation(snapshot, "gpt-confirm", request, first_new_seed(store, snapshot))
    assert flat(plan.base)["run.device"] == "auto"
    registered(store, plan)
    assert read_snapshot(store, "gpt-confirm").arithmetic == CPU
    fork_study(store, "gpt.yaml", "gpt", "forked", (), 5)
    assert read_snapshot(store, "forked").arithmetic == CPU


def test_of_two_workers_that_resolve_at_the_same_time_one_decides(here: Path, store: Store) -> None:
    study_id = registered(store, gpt(here)).slots.study_id
    assert fill_attr(store, study_id, ARITHMETIC, CUDA) == CUDA
    assert fill_attr(store, study_id, ARITHMETIC, CPU) == CUDA


def test_a_machine_that_cannot_do_what_was_resolved_is_named_with_the_remedy(here: Path, store: Store) -> None:
    stored = registered(store, gpt(here))
    fill_attr(store, stored.slots.study_id, ARITHMETIC, CUDA | {"run.device": "mps"})
    with pytest.raises(Problem, match=r"run.device mps, run.precision bf16, run.compile on, .*cannot: ") as refused:
        settle_arithmetic(load_stored_study(store, "gpt"), lambda event: None)
    assert "no mps device on this machine; start the worker on a machine of the same kind" in str(refused.value)


def test_a_study_of_an_earlier_version_has_no_record_and_keeps_auto(here: Path, store: Store) -> None:
    stored = registered(store, gpt(here))
    stored.optuna.set_user_attr(ARITHMETIC, None)  # an attribute that is missing reads the same
    assert settle_arithmetic(stored, lambda event: None) is stored
    assert flat(stored.study.base)["run.device"] == "auto"


def test_a_study_that_may_have_experts_leaves_compilation_to_the_trial(here: Path) -> None:
    study = with_arithmetic(gpt(here, {"model.name": {"choices": ["gpt", "moe"]}}), CUDA)
    assert (flat(study.base)["run.device"], flat(study.base)["run.compile"]) == ("cuda", "auto")
    assert flat(study.configured({"model.name": "moe"}))["run.precision"] == "bf16"


def test_a_value_that_another_program_changed_is_named(here: Path) -> None:
    with pytest.raises(Problem, match=r"its stored .*'run.device': 'tpu'.* is not valid"):
        with_arithmetic(gpt(here), {"run.device": "tpu"})


def test_trials_of_another_engine_are_not_comparable_to_the_last_bit(here: Path, store: Store) -> None:
    snapshot = trained(store, gpt(here))
    assert not [note for note in study_warnings(snapshot) if "engine" in note]
    assert "note" not in trial_record(snapshot, 0)
    old = as_engine(store, snapshot, None, 0)
    (note,) = [note for note in study_warnings(old) if "engine" in note]
    assert f"(1 with engine 1, 1 with engine {ENGINE})" in note
    assert "trained with engine 1, this version trains with engine 2: their" in trial_record(old, 0)["note"]
    assert "note" not in trial_record(old, 1)


def comparison(store: Store, here: Path, trials: float = math.inf) -> Snapshot:
    """Run a study of two arms on two seeds, or its first trials; return its snapshot."""
    tree = {"base": tiny({"run.rungs": 1, "run.tokens": 2 * UPDATE}).model_dump(mode="json"), "seeds": [1, 2]}
    arms = {"a": {}, "b": {"optimizer.lr": 5e-3}}
    (here / "arms.yaml").write_text(dump_yaml({**tree, "arms": arms}))
    stored = settle_arithmetic(registered(store, load_study("arms.yaml")), lambda event: None)
    Worker(stored, Path("runs"), 1, lambda event: None).work(trials)
    return read_snapshot(store, "arms")


def test_runs_of_different_engines_form_no_pair(here: Path, store: Store) -> None:
    snapshot = comparison(store, here)
    assert compare_arms(snapshot)[1].difference.n == 2  # type: ignore[union-attr]
    old = as_engine(store, snapshot, 1, 0)
    assert compare_arms(old)[1].difference is None
    assert [arm.n for arm in compare_arms(old)] == [2, 2]  # each has its mean
    settle_arithmetic(load_stored_study(store, "arms"), lambda event: None)  # nothing is left to run


def test_a_pair_that_another_engine_started_is_completed_and_not_counted(here: Path, store: Store) -> None:
    as_engine(store, comparison(store, here, trials=1), 1, 0)
    events: list[dict[str, Any]] = []
    with open_store(store.url) as fresh:  # as another process, whose Optuna has cached nothing
        stored = settle_arithmetic(load_stored_study(fresh, "arms"), events.append)
        assert "runs of different engines form no pair" in events[0]["text"]
        Worker(stored, Path("runs"), 1, lambda event: None).work()
        snapshot = read_snapshot(fresh, "arms")
        assert len(snapshot.trials) == 4
        assert [arm.n for arm in compare_arms(snapshot)] == [2, 2]
        assert compare_arms(snapshot)[1].difference is None  # one pair has no interval


def test_a_confirmation_with_a_pair_that_another_engine_started_is_refused(here: Path, store: Store) -> None:
    snapshot = as_engine(store, comparison(store, here, trials=1), 1, 0)
    with pytest.raises(Problem, match=r"the pairs of seeds 1 were started with engine 1, .*`--as NAME`"):
        check_engine_of_pairs("arms", study_from_spec(snapshot.spec).file, snapshot.trials)


def test_a_worker_continues_after_the_complete_pairs_of_another_engine(here: Path, store: Store) -> None:
    as_engine(store, comparison(store, here, trials=2), 1, 0, 1)
    events: list[dict[str, Any]] = []
    with open_store(store.url) as fresh:
        for _ in range(2):  # the event is stored and shown once
            stored = settle_arithmetic(load_stored_study(fresh, "arms"), events.append)
        assert ["trained with engine 1" in event["text"] for event in events] == [True]
        Worker(stored, Path("runs"), 1, lambda event: None).work()
        snapshot = read_snapshot(fresh, "arms")
        assert len(snapshot.trials) == 4
        assert compare_arms(snapshot)[1].difference.n == 2  # type: ignore[union-attr]


def test_a_search_that_varies_shapes_trains_its_trials_in_packs_of_one_shape(
    here: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The baseline and two points of the grid have one shape, two points have another.
    space = {"optimizer.lr": {"choices": [1e-3, 2e-3]}, "model.n_embd": {"choices": [16, 32]}}
    study = gpt(here, space, **{"run.rungs": 1, "run.tokens": 2 * UPDATE})
    study = replace(study, file=study.file.model_copy(update={"sampler": Grid(), "budget": Budget(trials=5)}))
    packs, build = [], pack.build_runs
    monkeypatch.setattr(pack, "build_runs", lambda *args, **rest: packs.append(args[1]) or build(*args, **rest))
    stored = settle_arithmetic(registered(store, study), lambda event: None)
    assert Worker(stored, Path("runs"), 2, lambda event: None).work() == 0
    assert [[flat(config)["model.n_embd"] for config in configs] for configs in packs] == [[16, 16], [32, 32]]

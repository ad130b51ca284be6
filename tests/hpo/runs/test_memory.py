"""Memory and time that one trial may use: who would exceed them is ended, and the sampler learns it."""

import sys
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.snapshot import read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.errors import WorkFailed
from hpo.queue.registry import register_study
from hpo.runs.datasets import PreparedDatasets, describe_data
from hpo.runs.memory import memory_problem
from hpo.storage.attributes import END_REASON, ERROR
from hpo.storage.store import open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.worker.join import preflight
from hpo.worker.worker import Worker
from tests.support.planted import planted_study as planted
from tests.support.tiny import tiny

WIDE = {"model.n_embd": {"choices": [16, 1024]}}


def gpt_study(folder: Path, **keys: Any) -> Path:
    base = tiny({}).model_dump(mode="json")
    tree = {"base": base, "sampler": {"name": "grid"}, "pruner": {"name": "none"}, "space": WIDE, "baseline": []}
    path = folder / "wide.yaml"
    path.write_text(dump_yaml(tree | {"budget": {"trials": 2}} | keys))
    return path


def test_trial_that_cannot_fit_is_refused_before_it_is_spent_and_learnt(tmp_path: Path) -> None:
    study = load_study(str(gpt_study(tmp_path, limits={"memory_gb": 0.05})))
    with open_store(f"sqlite:///{tmp_path}/f.db", create=True) as store:
        stored = register_study(store, study, *describe_data(study.base))
        assert Worker(stored, tmp_path / "runs", 1, lambda event: None).work() == 0
        snapshot = read_snapshot(store, "wide")
        small, wide = sorted(snapshot.trials, key=lambda trial: trial.params["model.n_embd"])
        assert (small.state, dict(small.constraints)) == (State.COMPLETE, {})
        assert (wide.state, wide.user_attrs[END_REASON], wide.last_step) == (State.PRUNED, "oom", None)
        assert dict(wide.constraints) == {"memory": 1.0}
        assert wide.user_attrs["hpo:feasible"] is False, "the dashboard does not show constraints"
        assert "GB" in wide.user_attrs[ERROR]
        assert snapshot.best() is not None
        assert snapshot.best() == small


def test_what_has_the_shape_of_the_baseline_is_not_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(str(gpt_study(tmp_path)))
    corpora = PreparedDatasets()
    assert memory_problem(study, study.base, corpora, probed=False) is None
    monkeypatch.setattr("model.memory.capacity.free_memory", lambda device: 10)
    assert memory_problem(study, study.base, corpora, probed=False) is None, "the pre-flight has shown that it fits"
    assert memory_problem(study, study.configured({"model.n_embd": 1024}), corpora, probed=False) is not None


def test_overlong_trial_ends_as_timeout_in_the_middle_of_a_rung_and_its_neighbour_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = planted(
        tmp_path,
        space={"pause": {"choices": [0.01, 30.0]}},
        sampler={"name": "grid"},
        pruner={"name": "none"},
        baseline=[],
        budget={"trials": 2},
        limits={"seconds": 1.5},
    )
    with open_store(f"sqlite:///{tmp_path}/t.db", create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        assert Worker(stored, tmp_path / "runs", 1, lambda event: None).work() == 0
        found = {trial.params["pause"]: trial for trial in read_snapshot(store, "planted").trials}
        assert found[0.01].state == State.COMPLETE
        assert (found[30.0].state, found[30.0].user_attrs[END_REASON]) == (State.PRUNED, "timeout")
        assert dict(found[30.0].constraints) == {"seconds": 1.0}
        assert "limits.seconds: allows 1.5" in found[30.0].user_attrs[ERROR]
    sys.modules.pop("curves", None)


def test_machine_that_cannot_train_the_baseline_gets_the_cause_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(str(gpt_study(tmp_path, baseline=[{}])))

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    with open_store(f"sqlite:///{tmp_path}/p.db", create=True) as store:
        stored = register_study(store, study, *describe_data(study.base))
        preflight(stored, PreparedDatasets())
        monkeypatch.setattr("model.train.trainer.Trainer._train", broken)
        with pytest.raises(
            WorkFailed, match=r"pre-flight: the first two updates of the baseline failed on this machine: .*no kernel"
        ):
            preflight(stored, PreparedDatasets())
        assert read_snapshot(store, "wide").trials == []

"""The worker, on planted curves and on tiny GPTs, over real storages."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hpo.worker.reporter
from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.analysis.summary import summary
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.runs.metrics import read_metrics
from hpo.storage.attributes import END_REASON, ERROR, STARTED
from hpo.storage.engine import open_readonly
from hpo.storage.store import open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from tests.support.control import register_gpt
from tests.support.planted import gpt_study
from tests.support.planted import planted_study as planted
from tests.support.tiny import tiny

pytestmark = pytest.mark.usefixtures("here")


def run(url: str, path: Path, pack: int = 1, **budget: Any) -> tuple[StoredStudy, list[dict[str, Any]]]:
    """Run a study in this process; return the study and the events of the worker."""
    events: list[dict[str, Any]] = []
    with open_store(url, create=True) as store:
        stored = register_study(store, load_study(str(path), budget=budget), None, {})
        assert Worker(stored, Path("runs"), pack, events.append).work() == 0
        stored.optuna.trials  # noqa: B018, read while the storage is open
        return stored, events


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder}/w.db"


@pytest.mark.parametrize("pack", [1, 3])
def test_every_trial_of_the_budget_runs_once_and_the_baseline_first(here: Path, pack: int) -> None:
    path = planted(here, train="curves:noted", baseline=[{}, {"x": 0.9}], pruner={"name": "none"})
    run(sqlite(here), path, pack)
    with open_readonly(sqlite(here)) as store:
        snapshot = read_snapshot(store, "planted")
        assert trial_counts(snapshot) == {"complete": 12, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
        assert [t.user_attrs["kind"] for t in snapshot.trials[:3]] == ["baseline", "baseline", "search"]
        assert [t.params["x"] for t in snapshot.trials[:2]] == [0.5, 0.9]
    assert len(list(here.glob("start-*"))) == 12


@pytest.mark.parametrize("pack", [1, 4])
def test_pruning_kills_a_planted_bad_trial_and_never_the_planted_best(here: Path, pack: int) -> None:
    values = [0.5, 0.4, 0.45, 0.42, 0.41, 0.43, 0.99, 0.95, 0.01, 0.3]
    path = planted(
        here,
        space={"x": {"choices": values[1:]}},
        sampler={"name": "brute-force"},
        pruner={"name": "median", "startup_trials": 5, "warmup_rungs": 1},
        budget={"trials": 10},
    )
    run(sqlite(here), path, pack)
    with open_readonly(sqlite(here)) as store:
        state = {t.params.get("x", 0.5): t.state for t in read_snapshot(store, "planted").trials}
    assert state[0.01] == State.COMPLETE
    if pack == 1:  # in a pack of four, the bad trials start before five are complete
        assert state[0.99] == state[0.95] == State.PRUNED


def test_baseline_is_never_pruned_though_it_is_the_worst(here: Path) -> None:
    path = planted(
        here,
        baseline=[{"x": x} for x in (0.1, 0.1, 0.1, 0.1, 0.1, 1.0)],
        pruner={"name": "median", "startup_trials": 3, "min_trials": 3, "warmup_rungs": 0},
        budget={"trials": 6},
    )
    run(sqlite(here), path)
    with open_readonly(sqlite(here)) as store:
        assert trial_counts(read_snapshot(store, "planted"))["complete"] == 6


def test_eight_processes_finish_exactly_the_budget_with_the_baseline_once(here: Path, storage_url: str) -> None:
    path = planted(here, train="curves:noted", budget={"trials": 40}, pruner={"name": "none"})
    with open_store(storage_url, create=True) as store:
        register_study(store, load_study(str(path)), None, {})
    command = [sys.executable, "-m", "hpo", "worker", "--study", "planted"]
    env = {**os.environ, "HPO_STORAGE": storage_url, "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(8)]
    for worker in workers:
        _, stderr = worker.communicate(timeout=120)
        assert (worker.returncode, stderr) == (0, b"")
    with open_readonly(storage_url) as store:
        snapshot = read_snapshot(store, "planted")
        assert trial_counts(snapshot) == {"complete": 40, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
        assert sum(t.user_attrs["kind"] == "baseline" for t in snapshot.trials) == 1
        assert sorted(t.user_attrs["slot"] for t in snapshot.trials) == list(range(40))
        points = [t.params["x"] for t in snapshot.trials]
        assert len(set(points)) == 40, "the sampler's seed differs from slot to slot"
    assert len(list(here.glob("start-*"))) == 40


def test_one_worker_and_one_seed_suggest_the_same_sequence_again(here: Path) -> None:
    path = planted(here, sampler={"name": "tpe", "startup_trials": 4})
    run(f"sqlite:///{here}/a.db", path)
    run(f"sqlite:///{here}/b.db", path)
    sequences = []
    for name in ("a", "b"):
        with open_readonly(f"sqlite:///{here}/{name}.db") as store:
            sequences.append([t.params for t in read_snapshot(store, "planted").trials])
    assert sequences[0] == sequences[1]


def test_diverged_trial_is_pruned_with_that_reason_and_the_pack_continues(here: Path) -> None:
    path = gpt_study(
        here / "wild.yaml",
        space={"optimizer.lr": {"choices": [1e-3, 1e30, 2e-3]}},
        sampler={"name": "brute-force"},
    )
    events: list[dict[str, Any]] = []
    with open_store(sqlite(here), create=True) as store:
        stored = register_gpt(store, path)
        assert Worker(stored, Path("runs"), 3, events.append).work() == 0
        snapshot = read_snapshot(store, "wild")
        trials = {t.params["optimizer.lr"]: t for t in snapshot.trials if "optimizer.lr" in t.params}
    assert trials[1e30].state == State.PRUNED
    assert trials[1e30].user_attrs[END_REASON] == "diverged"
    assert trials[1e-3].state == trials[2e-3].state == State.COMPLETE
    assert not (Path("runs/wild/trials") / f"{trials[1e30].number:04d}" / "checkpoint").exists()


def test_values_that_do_not_go_together_end_the_trial_not_the_worker(here: Path) -> None:
    path = gpt_study(
        here / "odd.yaml",
        space={"model.n_head": {"choices": [1, 3]}, "model.n_embd": {"choices": [16, 12]}},
        sampler={"name": "brute-force"},
        base=tiny({"model.n_embd": 12, "model.n_head": 1}).model_dump(mode="json"),
        budget={"trials": 5},
    )
    with open_store(sqlite(here), create=True) as store:
        stored = register_gpt(store, path)
        assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
        snapshot = read_snapshot(store, "odd")
        assert trial_counts(snapshot)["running"] == trial_counts(snapshot)["waiting"] == 0
        invalid = [t for t in snapshot.trials if t.user_attrs[END_REASON] == "invalid"]
    assert len(invalid) == 1
    assert "n_embd must be a multiple of n_head" in invalid[0].user_attrs[ERROR]


def test_trials_of_several_shapes_each_find_their_pack(here: Path) -> None:
    path = gpt_study(
        here / "shapes.yaml",
        space={"model.n_layer": {"choices": [1, 2]}, "run.grad_accum": {"choices": [1, 2]}},
        sampler={"name": "brute-force"},
        budget={"trials": 5},
    )
    with open_store(sqlite(here), create=True) as store:
        stored = register_gpt(store, path)
        assert Worker(stored, Path("runs"), 3, lambda event: None).work() == 0
        snapshot = read_snapshot(store, "shapes")
        assert trial_counts(snapshot)["complete"] == 5
        steps = {tuple(sorted(t.intermediate_values)) for t in snapshot.trials}
        marks = {
            tuple(line["tokens"] for line in read_metrics(f))
            for f in Path("runs/shapes/trials").glob("*/metrics.jsonl")
        }
    assert steps == {(1, 2, 3)}
    assert len(marks) == 1, "every trial is scored at the same tokens"


def test_budget_of_the_command_line_outlives_a_launch_without_it(here: Path) -> None:
    path = planted(here, budget={"trials": 3})
    with open_store(sqlite(here), create=True) as store:
        register_study(store, load_study(str(path), budget={"trials": 8}), None, {}, {"trials": 8})
        assert register_study(store, load_study(str(path)), None, {}).slots.n_unfinished() == 8
        assert (
            register_study(
                store, load_study(str(path), budget={"trials": 5}), None, {}, {"trials": 5}
            ).slots.n_unfinished()
            == 5
        )


def test_only_checkpoints_of_the_best_trials_are_saved(here: Path) -> None:
    path = gpt_study(here / "kept.yaml", budget={"trials": 4}, keep_best=2)
    with open_store(sqlite(here), create=True) as store:
        assert Worker(register_gpt(store, path), Path("runs"), 1, lambda event: None).work() == 0
        best = sorted(read_snapshot(store, "kept").trials, key=lambda trial: trial.values[0])
        numbers = {trial.number for trial in best[:2]}
    assert {int(file.parents[1].name) for file in Path("runs").glob("**/state.safetensors")} == numbers


def test_trials_without_checkpoints_do_not_read_the_others_at_their_end(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = planted(here, budget={"trials": 4}, pruner={"name": "none"})
    reads = []
    with open_store(sqlite(here), create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        read = store.optuna.get_all_trials
        monkeypatch.setattr(
            store.optuna, "get_all_trials", lambda *given, **named: (reads.append(given), read(*given, **named))[1]
        )
        assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
        assert trial_counts(read_snapshot(store, "planted"))["complete"] == 4
    assert len(reads) <= 1  # once when the budget is spent, to end paused trials


def test_launching_again_resumes_and_a_larger_budget_extends(here: Path) -> None:
    path = planted(here, budget={"trials": 4}, pruner={"name": "none"}, train="curves:noted")
    run(sqlite(here), path)
    run(sqlite(here), path)
    assert len(list(here.glob("start-*"))) == 4
    run(sqlite(here), path, trials=7)
    assert len(list(here.glob("start-*"))) == 7
    run(sqlite(here), path, trials=7)
    assert len(list(here.glob("start-*"))) == 7


def test_study_ends_when_its_hours_are_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo.worker.reporter, "STATE_REFRESH_S", 0.0)
    path = planted(here, budget={"hours": 1})
    with open_store(sqlite(here), create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        worker = Worker(stored, Path("runs"), 1, lambda event: None)

        def end_the_hour(event: dict[str, Any]) -> None:
            if event["event"] == "start":
                stored.optuna.set_user_attr(STARTED, stored.slots.now() - 3600)

        worker.listener = end_the_hour
        assert worker.work() == 0
        n = trial_counts(read_snapshot(store, "planted"))
    assert n["complete"] + n["pruned"] == 1
    assert n["running"] == n["waiting"] == 0


def test_study_ends_when_its_tokens_are_trained(here: Path) -> None:
    path = gpt_study(here / "tokens.yaml", budget={"tokens": 3000})
    with open_store(sqlite(here), create=True) as store:
        stored = register_gpt(store, path)
        Worker(stored, Path("runs"), 1, lambda event: None).work()
        found = summary(read_snapshot(store, "tokens"))
    assert found["trials"]["complete"] == 2  # 1,536 tokens each
    assert found["tokens"]["trained"] == 2 * 1536


def test_worker_with_other_data_refuses_to_join(here: Path) -> None:
    text = here / "own.txt"
    text.write_text("\n\n".join(f"Paragraph {i} says something of its own, at some length." * 20 for i in range(60)))
    base = tiny({"data.name": "text", "data.path": str(text)}).model_dump(mode="json")
    path = gpt_study(here / "own.yaml", base=base)
    with open_store(sqlite(here), create=True) as store:
        register_gpt(store, path)
    text.write_text(text.read_text().replace("Paragraph 7", "Paragraph 8"))
    command = [sys.executable, "-m", "hpo", "worker", "--storage", sqlite(here)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2
    assert "its data has the hash" in found.stderr
    assert "Traceback" not in found.stderr


def test_metrics_of_each_rung_lie_beside_the_trial_as_json(here: Path) -> None:
    path = gpt_study(here / "files.yaml", budget={"trials": 1})
    with open_store(sqlite(here), create=True) as store:
        Worker(register_gpt(store, path), Path("runs"), 1, lambda event: None).work()
        trial = read_snapshot(store, "files").trials[0]
    folder = Path("runs/files/trials/0000")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["val_loss"] for line in found] == [v for _, v in sorted(trial.intermediate_values.items())]
    wanted = ["val_bpb", "val_perplexity", "val_accuracy", "train_loss", "lr", "grad_norm", "clipped", "seconds"]
    wanted.append("tokens_per_second")
    assert all(isinstance(line[key], float) for line in found for key in wanted)
    assert (folder / "config.yaml").is_file()
    assert (folder / "checkpoint/state.safetensors").is_file()

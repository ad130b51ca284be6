"""A worker whose disk is full waits for room and gives up no trial."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hpo.worker.worker
from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.storage.store import open_store
from hpo.storage.trials import State
from hpo.worker.worker import Worker
from tests.support.control import register_gpt
from tests.support.disk import resize, small_disk, used
from tests.support.planted import gpt_study
from tests.support.tiny import tiny

pytestmark = pytest.mark.usefixtures("here")


def test_full_disk_quarantines_the_worker_until_there_is_room_and_costs_no_trial(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hpo.worker.worker, "PROBE_S", 0.05)
    path = gpt_study(here / "full.yaml", budget={"trials": 3})
    with small_disk(here / "small", "32k"), open_store(f"sqlite:///{here}/w.db", create=True) as store:
        stored = register_gpt(store, path)
        event_types: list[str] = []
        assert Worker(stored, here / "small", 1, make_room(here / "small", event_types)).work() == 0
        assert trial_counts(read_snapshot(store, "full")) | {"pruned": 0} == {
            "complete": 3, "pruned": 0, "failed": 0, "running": 0, "waiting": 0
        }  # fmt: skip
        assert [word for _, word, _ in stored.slots.attempts(0)] == ["disk", "complete"]
    assert [t for t in event_types if t in ("quarantined", "released")] == ["quarantined", "released"]


def make_room(disk: Path, event_types: list[str]) -> Callable[[dict[str, Any]], None]:
    """Return a listener that enlarges a disk when the worker is quarantined, and appends to `event_types`."""

    def listen(event: dict[str, Any]) -> None:
        event_types.append(event.get("text", event["event"]).partition(":")[0])
        if event_types[-1] == "quarantined":
            resize(disk, "64m")

    return listen


def test_full_disk_for_the_data_of_a_trial_is_not_the_trial_s_fault(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hpo.worker.worker, "PROBE_S", 0.05)
    cache = here / "cache"
    base = tiny({"tokenizer.name": "bpe", "tokenizer.vocab_size": 300}).model_dump(mode="json")
    keys = {"space": {"tokenizer.vocab_size": {"choices": [300, 330]}}, "sampler": {"name": "grid"}, "baseline": []}
    path = gpt_study(here / "cache.yaml", base=base, objective="val_bpb", budget={"trials": 2}, **keys)
    monkeypatch.setenv("HPO_CACHE", str(cache))
    with small_disk(cache, "64m"), open_store(f"sqlite:///{here}/w.db", create=True) as store:
        stored = register_gpt(store, path)
        resize(cache, f"{used(cache) // 1024 + 4}k")
        event_types: list[str] = []
        assert Worker(stored, Path("runs"), 1, make_room(cache, event_types)).work() == 0
        assert [t.state for t in read_snapshot(store, "cache").trials] == [State.COMPLETE] * 2
        assert [word for _, word, _ in stored.slots.attempts(1)] == ["disk", "complete"]
    assert "released" in event_types

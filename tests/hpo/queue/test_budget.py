"""A large study is registered in chunks, says how far it is, and an interrupted registration continues."""

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from hpo.analysis.snapshot import read_snapshot
from hpo.launcher.progress import RegistrationProgress
from hpo.queue.budget import fill_slots
from hpo.queue.inspect import BeingRegistered
from hpo.queue.registry import register_study
from hpo.queue.slots import Slots
from hpo.storage.schema import SLOT
from hpo.storage.store import Store
from hpo.study.load import load_study
from tests.support.cases import exhaustive
from tests.support.planted import planted_study

N_CHUNKS = 3


class Killed(BaseException):
    """Ends a registration, as SIGKILL would."""


@pytest.mark.usefixtures("here")
def test_status_counts_the_trials_of_an_interrupted_registration_and_the_next_launch_continues(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.queue.budget.CHUNK", 1000)
    study = load_study(str(planted_study(here, budget={"trials": 4500})))

    def kill(n: int, total: int) -> None:
        if n == N_CHUNKS * 1000:
            raise Killed

    with pytest.raises(Killed):
        register_study(store, study, None, {}, progress=kill)
    with pytest.raises(BeingRegistered, match="study planted: being registered, 3,000 of 4,500 trials"):
        read_snapshot(store, "planted")
    seen: list[tuple[int, int]] = []
    stored = register_study(store, study, None, {}, progress=lambda n, total: seen.append((n, total)))
    assert seen == [(4000, 4500), (4500, 4500)], "chunks that exist are not written again"
    assert stored.slots.counts()["free"] == 4500
    assert read_snapshot(store, "planted").slots["free"] == 4500


def test_gap_in_the_slots_is_filled(store: Store) -> None:
    slots = Slots(store, 1)
    fill_slots(slots, [("search", None)] * 5)
    with store.engine.begin() as connection:
        connection.execute(sa.delete(SLOT).where(SLOT.c.slot == 2))
    fill_slots(slots, [("search", None)] * 5)
    assert slots.counts()["free"] == 5


def test_progress_prints_at_most_one_line_in_two_seconds(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("hpo.launcher.progress.time.monotonic", lambda: now[0])
    progress = RegistrationProgress("big")
    for n in range(1, 8):
        now[0] += 0.7
        progress(n * 100_000, 1_000_000)
    assert capfd.readouterr().err.splitlines() == [
        "big: registering trials, 300,000 of 1,000,000",
        "big: registering trials, 600,000 of 1,000,000",
    ]


@pytest.mark.parametrize("n", [exhaustive(1_000_000)])
def test_a_million_trials_are_registered_in_seconds(store: Store, n: int) -> None:
    slots, started, cpu = Slots(store, 1), time.monotonic(), time.process_time()
    fill_slots(slots, [("search", None)] * n)
    assert slots.counts()["free"] == n
    assert time.process_time() - cpu < 15, f"{time.monotonic() - started:.0f} s"

"""`hpo doctor` finds what is wrong, says what to do, and makes safe repairs."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

import hpo.commands.doctor_checks
from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.commands.doctor_checks import check_all
from hpo.commands.doctor_files import CheckResult
from hpo.queue.registry import register_study
from hpo.runs.run_dir import trial_folder
from hpo.storage.attributes import DATA_HASH
from hpo.storage.schema import SLOT
from hpo.storage.store import Store, open_store
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from tests.support.command import hpo as command
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def store(storage_url: str, here: Path) -> Iterator[Store]:
    """A storage with a study of two trials, the second not started."""
    with open_store(storage_url, create=True) as store:
        stored = register_study(
            store, load_study(str(planted(here, budget={"trials": 2}, pruner={"name": "none"}))), None, {}
        )
        Worker(stored, Path("runs"), 1, lambda event: None).work(max_trials=1)
        yield store


def result_of(store: Store, check: str) -> CheckResult:
    """Return the result of a check that is not ok, otherwise the last result."""
    results = [f for f in check_all(store.url, None, Path("runs")) if f.check == check]
    return next((f for f in results if f.state != "ok"), results[-1])


def doctor(store: Store, *arguments: str, status: int = 0) -> dict[str, list[str]]:
    """Run the command; return the states of each check."""
    done = command("doctor", "--storage", store.url, "--format", "json", *arguments, cwd=Path.cwd(), status=status)
    states: dict[str, list[str]] = {}
    for row in json.loads(done.stdout):
        states.setdefault(row["check"], []).append(row["state"])
    return states


def test_healthy_storage_and_machine_are_fine(store: Store) -> None:
    assert {state for states in doctor(store).values() for state in states} == {"ok"}


def test_study_that_the_storage_does_not_hold_is_not_reported_as_fine(store: Store) -> None:
    done = command("doctor", "--storage", store.url, "--study", "plated", cwd=Path.cwd(), status=2)
    assert "no study 'plated' in the storage; there are planted" in done.stderr


def test_study_that_is_being_registered_is_a_warning(store: Store, here: Path) -> None:
    def interrupt(n: int, total: int) -> None:
        raise KeyboardInterrupt

    (here / "half").mkdir()
    study = load_study(str(planted(here / "half", budget={"trials": 7}).rename(here / "half" / "unfinished.yaml")))
    with pytest.raises(KeyboardInterrupt):
        register_study(store, study, None, {}, progress=interrupt)
    found = result_of(store, "study")
    assert found.state == "warning"
    assert found.message.startswith("study unfinished: being registered, 7 of 7 trials")


def test_lease_that_ran_out_is_found_and_freed(store: Store) -> None:
    at = hpo.commands.doctor_checks.Slots(store, 1)
    assert at.claim("gone", -1.0)
    assert result_of(store, "leases")[:3] == ("leases", "warning", "1 have expired, and no process has freed them")
    assert doctor(store, "--fix")["leases"] == ["fixed"]
    assert at.counts() == {"free": 1, "leased": 0, "done": 1, "expired": 0}
    assert doctor(store)["leases"] == ["ok"]


def test_trial_shown_as_running_that_nobody_has_is_found_and_repaired(store: Store) -> None:
    slots = hpo.commands.doctor_checks.Slots(store, 1)
    claim = slots.claim("me", 60)
    assert claim is not None
    trial_id = store.optuna.create_new_trial(1)
    with store.engine.begin() as connection:  # as a version without fences could leave it
        connection.execute(
            sa.text("UPDATE hpo_slot SET state = 'free', trial_id = :id WHERE slot = 1"), {"id": trial_id}
        )
    assert result_of(store, "trials").state == "error"
    doctor(store, status=1)
    assert doctor(store, "--fix")["trials"] == ["fixed"]
    assert store.optuna.get_trial(trial_id).state == TrialState.WAITING


def test_leftover_checkpoints_are_found_and_removed_but_not_those_of_the_best(store: Store, here: Path) -> None:
    stored = register_study(
        store, load_study(str(here / "planted.yaml"), budget={"trials": 6}), None, {}, {"trials": 6}
    )
    Worker(stored, Path("runs"), 1, lambda event: None).work()
    snapshot = read_snapshot(store, "planted")
    best = sorted(snapshot.trials, key=lambda trial: trial.values[0])
    for trial in snapshot.trials:
        folder = trial_folder(Path("runs/planted"), trial.number) / "checkpoint"
        folder.mkdir(parents=True)
        (folder / "state.safetensors").write_bytes(b"x" * 1000)
    assert "3 ended trials left checkpoints" in result_of(store, "checkpoints").message
    assert doctor(store, "--fix")["checkpoints"] == ["fixed"]
    kept = {int(path.parents[1].name) for path in Path("runs").glob("**/state.safetensors")}
    assert kept == {trial.number for trial in best[:3]}


def test_text_that_differs_from_the_study_s_is_wrong(store: Store) -> None:
    store.optuna.set_study_user_attr(1, DATA_HASH, "f" * 64)
    result = result_of(store, "data")
    assert result.state == "error"
    assert "the data here has the hash none, and the study's data ffffffffffff" in result.message
    assert doctor(store, status=1)["data"] == ["error"]


def test_folder_of_runs_that_other_machines_do_not_share_is_reported(store: Store) -> None:
    trial_id = store.optuna.get_all_trials(1)[0]._trial_id
    with store.engine.begin() as connection:
        theirs = sa.text("UPDATE trial_user_attributes SET value_json = :w WHERE key = 'worker' AND trial_id = :id")
        connection.execute(theirs, {"w": json.dumps("elsewhere:1:abc"), "id": trial_id})
    assert result_of(store, "runs").message == "planted: 1 of 1 trials of other machines have their files in runs"
    os.rename("runs", "not-mounted")
    result = result_of(store, "runs")
    assert (result.state, result.message) == (
        "warning",
        "planted: 0 of 1 trials of other machines have their files in runs",
    )


def test_clock_that_is_off_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    real = time.time
    monkeypatch.setattr(hpo.commands.doctor_checks.time, "time", lambda: real() + 3600)
    result = result_of(store, "clock")
    assert result.state == "warning"
    assert "ahead of the database's" in result.message


def test_tables_of_an_earlier_version_are_refused_named_and_upgraded(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE hpo_slot DROP COLUMN wish"))
        connection.execute(sa.text("DROP TABLE hpo_event"))
    store.close()
    refused = command("status", "--storage", store.url, cwd=Path.cwd(), status=4).stderr
    assert "its tables are of another version of hpo" in refused
    assert "`hpo doctor --fix` adds them" in refused
    assert doctor(store, status=1)["storage"] == ["error"]
    doctor(store, "--fix")
    assert trial_counts(read_snapshot(store, "planted"))["complete"] == 1
    assert doctor(store)["storage"] == ["ok"]


def test_storage_that_does_not_answer_is_status_4(here: Path) -> None:
    done = command("doctor", "--storage", "postgresql://u:s3cret@127.0.0.1:1/d", cwd=here, status=4)
    assert "connection failed" in done.stdout or "refused" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr


def test_disk_without_room_is_wrong(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def little(folder: Any) -> Any:
        return type("Usage", (), {"free": 5e7})

    monkeypatch.setattr(hpo.commands.doctor_checks.shutil, "disk_usage", little)
    results = list(hpo.commands.doctor_checks._check_disks(f"sqlite:///{here}/x.db", Path("runs")))
    assert {f.state for f in results} == {"error"}
    assert len(results) == 3


def test_states_of_version_0_1_are_printed_on_request_with_a_note(here: Path) -> None:
    url = f"sqlite:///{here}/hpo.db"
    open_store(url, create=True).close()

    def printed(format: str, setting: str, status: int = 0) -> tuple[str, str]:
        done = command(
            "doctor", "--storage", url, "--format", format, cwd=here, status=status, HPO_DOCTOR_STATES=setting
        )
        return done.stdout, done.stderr

    old, note = printed("json", "0.1")
    assert {row["state"] for row in json.loads(old)} <= {"fine", "look"}
    assert note == (
        "note: version 0.3.0 removes HPO_DOCTOR_STATES=0.1; read the states ok, warning, error, fixed instead\n"
    )
    new, note = printed("json", "")
    assert {row["state"] for row in json.loads(new)} <= {"ok", "warning"}
    assert note == (
        "note: fine is now ok, look is now warning, wrong is now error, mended is now fixed; "
        "HPO_DOCTOR_STATES=0.1 prints the old states, HPO_DOCTOR_STATES=0.2 hides this note\n"
    )
    assert [list(row) for row in json.loads(new)] == [["check", "state", "found", "remedy"]] * len(json.loads(new))
    assert printed("json", "0.2")[1] == ""
    table, note = printed("table", "")
    assert (table.split()[0], note) == ("ok", "")
    assert "HPO_DOCTOR_STATES: must be 0.1 or 0.2, got 'x'" in printed("json", "x", status=2)[1]


def test_trial_that_is_interrupted_again_and_again_is_named(store: Store) -> None:
    slots = register_study(store, load_study("planted.yaml"), None, {}).slots
    for _ in range(3):
        claim = slots.claim("owner", 60)
        assert claim is not None
        slots.release(claim, "owner", "preempted")
    said = "slot 1: the last 3 attempts ended without a new rung; it fails after 5 failures or 20 attempts in a row"
    found = result_of(store, "attempts")
    assert (found.state, said in found.message) == ("warning", True)
    assert said in command("status", "--storage", store.url, cwd=Path.cwd()).stdout


def test_void_leases_are_found_and_freed(store: Store) -> None:
    with store.engine.begin() as connection:  # the clock of the database was set back by an hour
        now = hpo.commands.doctor_checks.Slots(store, 1).clock
        leased = {"state": "leased", "owner": "gone", "lease_until": now + 3600, "lease_s": 60}
        connection.execute(sa.update(SLOT).where(SLOT.c.slot == 1).values(leased))
    found = result_of(store, "leases")
    assert (found.state, found.message.partition("; ")[2]) == (
        "warning",
        "1 of them end later than a lease can, because the clock of the database was set back",
    )
    assert doctor(store, "--fix")["leases"] == ["fixed"]
    assert result_of(store, "leases").state == "ok"

"""A trial resumes from what is left after a fault: nothing damaged is believed, and nothing damaged fails a trial."""

import functools
import json
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.snapshot import read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.queue.registry import StoredStudy, register_study
from hpo.runs.datasets import describe_data
from hpo.runs.metrics import read_metrics
from hpo.storage.store import open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.worker.executor import TrialExecutor
from hpo.worker.worker import Worker
from tests.support.cases import exhaustive
from tests.support.tiny import alone, tiny

TRIAL = Path("runs/torn/trials/0000")
LOG = TRIAL / "metrics.jsonl"


@functools.cache
def curve() -> list[float]:
    """Return the losses of the undisturbed run."""
    return [m.val_loss for m in alone(tiny())]


def interrupted(folder: Path, rung: int) -> None:
    """Run a study of one trial until it has reported a rung and saved its checkpoint, and end the worker there."""
    tree = {"base": tiny().model_dump(mode="json"), "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}
    (folder / "torn.yaml").write_text(dump_yaml({**tree, "budget": {"trials": 1}, "pruner": {"name": "none"}}))

    def die(event: dict[str, Any]) -> None:
        if event["event"] == "rung" and event["rung"] == rung + 1:
            raise KeyboardInterrupt  # like SIGKILL: nothing is saved after it

    with open_store(f"sqlite:///{folder}/hpo.db", create=True) as store:
        study = load_study(str(folder / "torn.yaml"))
        worker = Worker(register_study(store, study, *describe_data(study.base)), Path("runs"), 1, die)
        with pytest.raises(KeyboardInterrupt):
            worker.work()


def resumed(folder: Path) -> list[dict[str, Any]]:
    """Run the study to its end; check that its first trial has the curve of an undisturbed run; return its events."""
    events: list[dict[str, Any]] = []
    with open_store(f"sqlite:///{folder}/hpo.db") as store:
        study = load_study(str(folder / "torn.yaml"))
        stored: StoredStudy = register_study(store, study, *describe_data(study.base))
        assert Worker(stored, Path("runs"), 1, events.append).work() == 0
        trial = read_snapshot(store, "torn").trials[0]
        assert (trial.state, trial.values) == (State.COMPLETE, [curve()[-1]])
        assert list(trial.intermediate_values.values()) == curve()
    assert [(row["rung"], row["val_loss"]) for row in read_metrics(LOG)] == list(enumerate(curve(), 1))
    assert len(LOG.read_text().splitlines()) == 3
    return [event for event in events if event.get("trial") == 0 or "trial 0" in event.get("text", "")]


def rare(names: Iterable[str], *exhaustive_ones: str) -> list[Any]:
    """Return cases of which only `make exhaustive` runs some."""
    return [exhaustive(name) if name in exhaustive_ones else name for name in names]


def rungs(events: list[dict[str, Any]]) -> list[int]:
    return [event["rung"] for event in events if event["event"] == "rung"]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


CHECKPOINTS: dict[str, Callable[[bytes], bytes] | None] = {
    "one flipped bit": flip,
    "second half is zeros": lambda content: content[: len(content) // 2] + bytes(len(content) // 2),
    "another file": lambda content: b'{"rung": 2}',
    "empty": lambda content: b"",
    "a folder": None,
}


@pytest.mark.parametrize("damage", rare(CHECKPOINTS, "another file", "empty"))
def test_trial_restarts_and_ends_with_the_same_losses_after_its_checkpoint_was_damaged(here: Path, damage: str) -> None:
    interrupted(here, 1)
    (file,) = TRIAL.glob("*/state.safetensors")
    content = file.read_bytes()
    if (change := CHECKPOINTS[damage]) is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(change(content))
    events = resumed(here)
    assert rungs(events) == [1, 2, 3]
    assert any(
        event.get("text", "").startswith("restarted: trial 0 restarts from its first rung: ") for event in events
    )


LOGS: dict[str, Callable[[bytes], bytes] | None] = {
    "one bad byte": lambda content: content[:30] + b"\xff" + content[31:],
    "a line 5": lambda content: b"5\n" + content,
    "a line without a rung": lambda content: content.replace(b'"rung": 1', b'"ring": 1'),
    "a rung of text": lambda content: content.replace(b'"rung": 1', b'"rung": "1"'),
    "another loss": lambda content: content.replace(b'"val_loss": ', b'"val_loss": 1'),
    "a loss of text": lambda content: content.replace(b'"val_loss": ', b'"val_loss": "", "x": '),
    "binary": lambda content: bytes(range(256)) * 8,
    "deep": lambda content: b"[" * 100_000 + b"\n" + content,
    "a torn last line": lambda content: content[:-40],
    "empty": lambda content: b"",
    "gone": None,
}


@pytest.mark.parametrize("damage", rare([*LOGS, "a folder"], *list(LOGS)[2:4], *list(LOGS)[5:6], *list(LOGS)[7:]))
def test_metrics_are_repaired_from_the_storage_and_the_trial_continues(here: Path, damage: str) -> None:
    interrupted(here, 1)  # it has reported rung 2, and its checkpoint is that of rung 1
    content = LOG.read_bytes()
    LOG.unlink()
    if damage == "a folder":
        LOG.mkdir()
    elif (change := LOGS[damage]) is not None:
        LOG.write_bytes(change(content))
    assert rungs(resumed(here)) == [2, 3]


@pytest.mark.parametrize("lost", [1, 2, 3], ids=["the last value", "the last two values", "every value"])
def test_trial_whose_values_are_all_known_is_complete_though_the_storage_is_older(
    here: Path, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialExecutor, "complete", die)
        interrupted(here, 9)
    forget(here, lost)
    assert rungs(resumed(here)) == []


def test_trial_whose_values_are_lost_in_storage_and_metrics_restarts(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_values = json.dumps({"rung": 3, "val_loss": curve()[2]}) + "\n"
    with monkeypatch.context() as patch:
        patch.setattr(TrialExecutor, "complete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        interrupted(here, 9)
    forget(here, 3)
    LOG.write_text(test_values)
    assert rungs(resumed(here)) == [1, 2, 3]


def forget(folder: Path, last: int) -> None:
    """Delete the last values of the trial, as in an older copy of the storage."""
    with sqlite3.connect(folder / "hpo.db") as connection:
        assert connection.execute("DELETE FROM trial_intermediate_values WHERE step > ?", (3 - last,)).rowcount == last
    connection.close()

"""A study that real processes run while a fault occurs, and the checks that must hold afterwards."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.errors import StorageError
from hpo.runs.metrics import read_metrics
from hpo.runs.resources import thread_environment
from hpo.storage.attributes import END_REASON, MARKS
from hpo.storage.engine import Reader, open_readonly
from hpo.storage.retry import limit_patience
from hpo.storage.trials import State
from tests.faults.inside import curves
from tests.support.command import worker_processes
from tests.support.postgres import Postgres
from tests.support.tiny import UPDATE, alone, tiny

ROOT = Path(__file__).parents[2]
NAME = "scene"
LEASE_S = 2.0
RUNGS = 4
TRIALS = 6
FINISHED = ("COMPLETE", "PRUNED", "FAIL")

PLANTED: dict[str, Any] = {
    "train": "curves:Curves",
    "config": "curves:Config",
    "space": {"x": {"low": 0.0, "high": 1.0}},
    "rungs": RUNGS,
    "base": {"pause": 0.3},
}
# Trials pause at rungs 1 and 2, and the better half of them continues. The first trial to report pauses, and it is
# promoted, because both trials that may be the first belong to the better half.
ASHA: dict[str, Any] = {
    **PLANTED,
    "space": {"x": {"choices": [0.3, 0.2, 0.8, 0.1, 0.9, 0.7, 0.4, 0.6]}},
    "sampler": "grid",
    "baseline": [],
    "pruner": {"name": "asha", "factor": 2},
    "base": {"pause": 0.15},
}
LR = "optimizer.lr"
GPT: dict[str, Any] = {"space": {LR: {"choices": [1e-3, 2e-3, 3e-3, 4e-3]}}}
PROBED: dict[str, Any] = {**GPT, "probe": {"rungs": [2], "share": 0.1}, "pruner": {"name": "median"}}


def base(values: Mapping[str, Any] | None = None) -> Any:
    """Return the run of a GPT scene: four rungs of about an eighth of a second.

    Not compiled, because compilation changes the last bits: `auto` would decide by the speed of the machine.
    """
    given = {LR: 3e-3, "run.tokens": 320 * UPDATE, "run.rungs": RUNGS, "run.compile": "off"}
    return tiny({**given, **(values or {})})


@functools.cache
def reference(lr: float) -> list[float]:
    """Return the curve of a run without faults."""
    return [m.val_loss for m in alone(base({LR: lr}))]


def planted_curve(params: Mapping[str, Any]) -> list[float]:
    return curves.curve(params.get("x", 0.5), RUNGS)


def gpt_curve(params: Mapping[str, Any]) -> list[float]:
    return reference(params.get(LR, 3e-3))


class Scene:
    """A folder, a storage, and the processes that were started on them."""

    def __init__(self, folder: Path, url: str, server: Postgres | None = None) -> None:
        self.folder, self.url, self.server = folder, url, server
        self.environment = {"HPO_LEASE_S": str(LEASE_S), "FAULT": "", "FAULT_MARK": f"{folder}/mark"}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.out = folder / "runs"
        self.witness, self.checked = Witness(self), False
        self.types_seen: set[str] = set()
        self.ends: Counter[str] = Counter()  # number of attempts by how they ended, set by `check`
        self.study()

    @property
    def kind(self) -> str:
        return "postgres" if self.server else "sqlite"

    @property
    def database(self) -> str:
        """Return the name of the database of the server, or the file."""
        return str(sa.make_url(self.url).database)

    def study(self, keys: Mapping[str, Any] = PLANTED, trials: int = TRIALS, **more: Any) -> None:
        """Write the study file: known curves and no pruning, so that every value must be in the storage."""
        self.trials = trials
        self.curve = planted_curve if "train" in keys else gpt_curve
        tree = {} if "train" in keys else {"base": base().model_dump(mode="json")}
        tree |= {"sampler": {"name": "random"}, "pruner": {"name": "none"}, "budget": {"trials": trials}, **keys}
        self.pruner = tree["pruner"]
        self.file = self.folder / f"{NAME}.yaml"
        self.file.write_text(dump_yaml(tree | more))

    def launch(self, workers: int = 2, **more: str) -> "subprocess.Popen[bytes]":
        """Start `hpo launch` of the study."""
        arguments = ["launch", "--study", str(self.file), "--workers", str(workers), "--plain"]
        # One core for each worker, so one thread, as in the reference: the number of threads changes the last bits.
        return self.start(*arguments, "--out", str(self.out), SCENE_CORES=str(workers), **more)

    def finish(self) -> None:
        """Run the study to its end; launch it again if no launcher runs."""
        if self.checked:  # it has ended, and its storage may have been on a small disk that no longer exists
            return
        launcher = self.processes[-1] if self.processes else None
        if launcher is None or launcher.poll() is not None or "launch" not in map(str, launcher.args):
            launcher = self.launch()
        self.end(launcher)

    def worker(self, **more: str) -> "subprocess.Popen[bytes]":
        """Start one `hpo worker` of the study."""
        return self.start("worker", "--study", NAME, "--out", str(self.out), **more)

    def start(self, *arguments: str, **more: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, **thread_environment(1), **self.environment, "HPO_STORAGE": self.url, **more}
        environment["PYTHONPATH"] = f"{ROOT}/tests/faults/inside:{ROOT}"
        with (self.folder / f"said-{len(self.processes)}.txt").open("wb") as said:
            command = [sys.executable, "-m", "hpo", *arguments]
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=said, stderr=said)
        self.processes.append(process)
        return process

    def said(self, process: "subprocess.Popen[bytes]") -> str:
        """Return the output of a process so far."""
        return (self.folder / f"said-{self.processes.index(process)}.txt").read_text("utf-8", "replace")

    def end(self, process: "subprocess.Popen[bytes]", status: int = 0, seconds: float = 120.0) -> str:
        """Wait for the end of a process, check its status and that its output has no traceback; return its output."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        said = self.said(process)
        assert process.poll() == status, f"{process.args}: {process.poll()} instead of {status}\n{said}{self.logs()}"
        assert "Traceback" not in said, said
        return said

    def logs(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()}" for path in self.out.glob(f"{NAME}/worker-*.log"))

    def pids(self) -> list[int]:
        """Return the worker processes of this scene."""
        return worker_processes(self.folder)

    def holder(self) -> int:
        """Wait for a worker that trains and does not end its trial soon; return its process id."""
        last = "(SELECT coalesce(max(step), 0) FROM trial_intermediate_values v WHERE v.trial_id = s.trial_id)"
        training = f"SELECT owner FROM hpo_slot s WHERE state = 'leased' AND {last} < 2 ORDER BY slot"
        owners = self.until(lambda: self.rows(training))
        return int(owners[-1][0].split(":")[1])

    def until(self, true: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Wait until a function returns a true value; return this value."""
        deadline = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < deadline, f"did not happen in {seconds:g} s\n{self.everything()}"
            time.sleep(0.1)
        return found

    def everything(self) -> str:
        said = "".join(f"{process.args}\n{self.said(process)}" for process in self.processes)
        return f"{said}{self.logs()}\n" + "\n".join(map(str, self.rows("SELECT * FROM hpo_event ORDER BY id")))

    def wait_for_values(self, values: int = 2) -> None:
        """Wait until the study has this many reported values."""
        self.until(lambda: len(self.rows("SELECT 1 FROM trial_intermediate_values")) >= values)

    def rows(self, statement: str) -> list[Any]:
        """Read from the storage; return no rows if it is unreachable or has no tables yet."""
        try:
            with limit_patience(2.0), open_readonly(self.url) as store:
                return ask(store, statement)
        except (StorageError, sa.exc.SQLAlchemyError):
            return []

    def write(self, statement: str) -> None:
        """Write to the storage, as an administrator would."""
        engine = sa.create_engine(self.url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)

    def event_types(self) -> set[str]:
        """Return the event types in the table of events so far."""
        return {word for (word,) in self.rows("SELECT DISTINCT word FROM hpo_event")}

    def check(self) -> None:
        """Check what must hold for every study that has ended, after any fault, while its storage exists."""
        if not self.checked:
            check(self)
            self.types_seen, self.checked = self.event_types(), True

    def close(self) -> None:
        """End the processes of this scene, and no others."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Witness:
    """Reads the storage twice per second while faults occur, and stores every value that it has seen."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen: dict[tuple[Any, ...], Any] = {}
        self.changed: list[str] = []
        self.lock = threading.Lock()  # its holder is the only reader of the storage
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def compare(self) -> None:
        """Compare the values in the storage with those seen before."""
        passing = contextlib.suppress(StorageError, sa.exc.SQLAlchemyError)
        with self.lock, passing, limit_patience(2.0), open_readonly(self.scene.url) as store:
            found = dict(final_values(store))
            for key in self.seen.keys() | found.keys():
                before = self.seen.setdefault(key, found.get(key))
                if found.get(key, "gone") != before:
                    self.changed.append(f"{key}: {before} became {found.get(key, 'gone')}")

    def _loop(self) -> None:
        while not self._stop.wait(0.5):
            self.compare()


def ask(store: Reader, statement: str) -> list[Any]:
    with store.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(statement))]


def final_values(store: Reader) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the values that must never change: values of rungs, and states and values of finished trials."""
    with store.engine.connect() as connection:  # one transaction

        def rows(statement: str) -> Any:
            return connection.execute(sa.text(statement)).all()

        trials = rows("SELECT trial_id, number, CAST(state AS VARCHAR) AS state FROM trials")
        numbers = {trial.trial_id: trial.number for trial in trials}
        for row in rows("SELECT trial_id, step, intermediate_value AS v FROM trial_intermediate_values"):
            if row.trial_id in numbers:  # in Postgres each statement of a transaction sees the newest rows
                yield (numbers[row.trial_id], "rung", row.step), row.v
        ended = {trial.trial_id for trial in trials if trial.state in FINISHED}
        yield from (((t.number, "state"), t.state) for t in trials if t.trial_id in ended)
        for row in rows("SELECT trial_id, value FROM trial_values"):
            if row.trial_id in ended:
                yield (numbers[row.trial_id], "value"), row.value


def check(scene: Scene) -> None:
    """Check that the budget is spent exactly, nothing is left running, no value changed, and each end has a reason."""
    scene.witness.compare()
    assert scene.witness.seen
    assert scene.witness.changed == []
    assert scene.pids() == []
    with open_readonly(scene.url) as store:
        snapshot = read_snapshot(store, NAME)
        slots = ask(store, "SELECT slot, state, attempt, trial_id FROM hpo_slot ORDER BY slot")
        trials = [trial for (trial,) in ask(store, "SELECT trial_id FROM trials")]
        events = ask(store, "SELECT slot, attempt, word FROM hpo_event WHERE attempt IS NOT NULL ORDER BY id")
        assert [(number, state) for number, state, *_ in slots] == [(n, "done") for n in range(scene.trials)]
        assert Counter(trial for *_, trial in slots) == Counter(trials)
        assert [t.number for t in snapshot.trials] == list(range(scene.trials))
        assert {t.state.name for t in snapshot.trials} <= set(FINISHED)
        expected_ends = ("lost", "error", "disk")
        assert all(t.state.name != "FAIL" or t.user_attrs[END_REASON] in expected_ends for t in snapshot.trials)
        for trial in snapshot.trials:
            check_curve(scene, trial)
        if scene.pruner["name"] == "asha":
            check_marks(scene, snapshot)
    scene.ends = Counter(word for _, _, word in events if word != "began")
    # Every attempt started once and ended once, for one reason.
    expected = {(slot, n) for slot, _, attempts, _ in slots for n in range(1, attempts + 1)}
    assert Counter((slot, n) for slot, n, word in events if word == "began") == Counter(expected)
    assert Counter((slot, n) for slot, n, word in events if word != "began") == Counter(expected)


def check_marks(scene: Scene, snapshot: Snapshot) -> None:
    """Check that the better half at each mark has continued, that all others have ended there, and that every trial was
    promoted at most once from a mark."""
    assert scene.rows("SELECT 1 FROM trial_user_attributes WHERE key = 'paused'") == []
    pruned = [t for t in snapshot.trials if t.user_attrs[END_REASON] == "pruned"]
    assert {t.last_step for t in pruned} <= {1, 2}
    for mark in (1, 2):
        reached = [t for t in snapshot.trials if mark in t.intermediate_values and t.state != State.FAIL]
        ranked = sorted(reached, key=lambda t: (t.intermediate_values[mark], t.number))
        assert [t.number for t in ranked[: len(ranked) // 2] if t.last_step == mark] == []
    for trial in snapshot.trials:
        marks = trial.user_attrs.get(MARKS, [])
        for mark in (1, 2):
            decided = [record["decision"] for record in marks if record["rung"] == mark]
            assert decided in ([], ["paused"], ["continued"], ["paused", "promoted"])
            beyond = (trial.last_step or 0) > mark and snapshot.kind(trial) != "baseline"
            if trial.state != State.FAIL:
                assert (decided[-1:] in (["continued"], ["promoted"])) == beyond
    promoted = scene.rows("SELECT slot, text FROM hpo_event WHERE word = 'began' AND text LIKE 'promoted %'")
    assert len({(slot, text.split(",")[0]) for slot, text in promoted}) == len(promoted)
    ended = scene.rows("SELECT slot FROM hpo_event WHERE word = 'pruned' AND attempt IS NULL")
    assert len(ended) == len(pruned)


def check_curve(scene: Scene, trial: Any) -> None:
    """Check that a curve equals that of a run without faults bit for bit, in the storage and in metrics.jsonl."""
    curve = dict(enumerate(scene.curve(trial.params), 1))
    found = dict(trial.intermediate_values)
    assert {rung: v for rung, v in found.items() if v == v} == {r: curve[r] for r, v in found.items() if v == v}
    if trial.state.name != "COMPLETE":
        return
    assert (found, trial.values) == (curve, [curve[RUNGS]])
    rows = list(read_metrics(scene.out / NAME / "trials" / f"{trial.number:04d}" / "metrics.jsonl"))
    probed = {row["rung"] for row in rows if "probe_val_loss" in row}  # their lines follow the ones without a probe
    told = [(row["rung"], row["val_loss"]) for row in rows if (row["rung"] in probed) == ("probe_val_loss" in row)]
    assert told == list(curve.items()), f"trial {trial.number}: {told} instead of {curve}"

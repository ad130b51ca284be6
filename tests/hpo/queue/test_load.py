"""Many processes on one storage: no error, nothing lost, the exact total."""

import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.queue.registry import load_stored_study, register_study
from hpo.storage.store import open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from tests.support.cases import exhaustive
from tests.support.planted import planted_study as planted
from tests.support.postgres import MISSING, Postgres, binaries
from tests.support.race import forking_context

pytestmark = pytest.mark.usefixtures("here")


def operate(i: int, url: str, n: int) -> int:
    """Do n storage operations as a worker mixes them; return how many trials were made."""
    with open_store(url, patience=120) as store:
        stored = load_stored_study(store, "planted")
        made = 0
        while n > 0:
            trial_id = store.optuna.create_new_trial(stored.optuna._study_id, create_trial(state=TrialState.RUNNING))
            for rung in range(1, 7):
                store.optuna.set_trial_intermediate_value(trial_id, rung, 1.0 / rung)
            store.optuna.set_trial_user_attr(trial_id, "process", i)
            store.optuna.set_trial_state_values(trial_id, TrialState.COMPLETE, [float(i)])
            stored.slots.counts()
            made, n = made + 1, n - 10
        return made


@pytest.mark.parametrize("n", [8, exhaustive(16)])
def test_processes_do_200_operations_each_on_one_sqlite_file_without_an_error(here: Path, n: int) -> None:
    url = f"sqlite:///{here}/busy.db"
    with open_store(url, create=True) as store:
        register_study(store, load_study(str(planted(here))), None, {})
        with ProcessPoolExecutor(n, forking_context()) as pool:
            made = list(pool.map(operate, range(n), [url] * n, [200] * n))
        snapshot = read_snapshot(store, "planted")
        assert made == [20] * n
        assert len(snapshot.in_state(State.COMPLETE)) == 20 * n
        assert Counter(trial.user_attrs["process"] for trial in snapshot.trials) == Counter(dict.fromkeys(range(n), 20))
        assert {len(trial.intermediate_values) for trial in snapshot.trials} == {6}


# Sixty-four whole interpreters would take two cores a minute to start; forks of one that has loaded all take none.
WORKERS = """
import os, sys, traceback
from pathlib import Path
import optuna.storages._rdb.models, psycopg, sqlalchemy, scipy.stats
from hpo.queue.registry import load_stored_study
from hpo.storage.store import open_store
from hpo.worker.worker import Worker
url, n = sys.argv[1], int(sys.argv[2])
children = []
for i in range(n):
    pid = os.fork()
    if not pid:
        try:
            with open_store(url, patience=120) as store:
                status = Worker(load_stored_study(store, None), Path("runs"), 1, lambda event: None).work()
        except Exception:
            traceback.print_exc()
            status = 1
        os._exit(status)
    children.append(pid)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


@pytest.mark.parametrize(("workers", "trials"), [(6, 24), exhaustive(64, 160)])
def test_many_workers_on_postgres_end_exactly_the_budget_without_an_error(
    here: Path, workers: int, trials: int
) -> None:
    if not binaries():
        pytest.skip(MISSING)
    server = Postgres(max_connections=160)
    try:
        server.start()
        with open_store(server.url(), create=True) as store:
            register_study(store, load_study(str(planted(here, budget={"trials": trials}))), None, {})
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", WORKERS, server.url(), str(workers)],
                cwd=here, env=os.environ | {"PYTHONPATH": f"{Path(__file__).parents[3]}:{here}"},
                capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            print(
                f"{trials} trials of 4 rungs by {workers} workers: {trials / (time.monotonic() - began):.1f} trials/s"
            )
            assert (done.returncode, done.stderr) == (0, "")
            snapshot = read_snapshot(store, "planted")
            n = trial_counts(snapshot)
            assert n["complete"] + n["pruned"] == len(snapshot.trials) == trials
            assert (n["failed"], n["running"], n["waiting"]) == (0, 0, 0)
            assert len({trial.user_attrs["slot"] for trial in snapshot.trials}) == trials
            assert len({trial.user_attrs["worker"] for trial in snapshot.trials}) > workers / 2, "the work was shared"
            assert {h.event_type for h in snapshot.events} <= {"invalid"}
    finally:
        server.remove()

"""Measure proposals: the time of an ask by length of the study, and duplicates among many workers on Postgres.

python bench/ask.py [--asks 9] [--workers 64] [--trials 384]
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.crowd import SPACE, plant, study
from bench.scale import suggest_once
from hpo.config.permission import permit
from hpo.queue.registry import load_stored_study, register_study
from hpo.search.ranges import Choices, Space
from hpo.search.scale import unit_position
from hpo.storage.store import open_store
from hpo.storage.trials import read_trials
from hpo.worker.worker import Worker
from tests.support.postgres import Postgres

SAMPLERS: tuple[dict[str, Any], ...] = (
    {"name": "auto"},
    {"name": "tpe"},
    {"name": "tpe", "multivariate": True},
    {"name": "gp"},
)
LENGTHS = (5, 50, 200, 1000)
N_RUNNING = 3
NEAR = (0.0, 0.001, 0.01)  # largest difference in each range, as a share of it, of trials that count as duplicates


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asks", type=int, default=9, help="repetitions of each time")
    parser.add_argument("--workers", type=int, default=64, help="processes on Postgres; 0 skips this part")
    parser.add_argument("--trials", type=int, default=384, help="trials of all workers together")
    arguments = parser.parse_args()
    print(f"median time of an ask with {len(SPACE)} fields and {N_RUNNING} running trials, one core, SQLite")
    print("| sampler | " + " | ".join(f"{n:,} finished" for n in LENGTHS) + " |")
    print("|---|" + "---|" * len(LENGTHS))
    for fields in SAMPLERS:
        name = " ".join(str(value) if key == "name" else f"{key}={value}" for key, value in fields.items())
        print(f"| {name} | " + " | ".join(ask_time(fields, n, arguments.asks) for n in LENGTHS) + " |", flush=True)
    if arguments.workers:
        print(duplicates(arguments.workers, arguments.trials))


def ask_time(fields: dict[str, Any], n_finished: int, asks: int) -> str:
    """Return the median wall-clock and CPU time of an ask."""
    with tempfile.TemporaryDirectory() as folder, open_store(f"sqlite:///{folder}/hpo.db", create=True) as store:
        stored = plant(store, n_finished, N_RUNNING, fields)
        suggest_once(stored)  # the first call imports modules and reads the trials
        costs = [suggest_once(stored) for _ in range(asks)]
    wall, cpu = (statistics.median(times) for times in zip(*costs, strict=True))
    return f"{wall:.2f} s, CPU {cpu:.2f} s"


def duplicates(n_workers: int, n_trials: int) -> str:
    """Run workers that train nothing, and return how many trials repeat another trial."""
    server = Postgres(max_connections=2 * n_workers + 40)
    with tempfile.TemporaryDirectory() as folder:
        try:
            server.start()
            url, began = server.url(), time.perf_counter()
            permit(["bench.crowd:train"])
            with open_store(url, create=True) as store:
                register_study(store, study(n_trials, {"name": "auto"}), None, {})
            work_in_parallel(url, Path(folder), n_workers)
            seconds = time.perf_counter() - began
            with open_store(url) as store:
                stored = load_stored_study(store, "crowd")
                trials = read_trials(store, stored.slots.study_id)
                found = [trial.params for trial in trials if trial.user_attrs["kind"] == "search"]
                space = stored.study.file.space
        finally:
            server.remove()
    repeated = {near: count_repeated(found, space, near) for near in NEAR}
    lines = [f"{n} of {len(found)} trials equal an earlier trial within {near:.1%}" for near, n in repeated.items()]
    return "\n".join([f"{n_workers} workers on Postgres, sampler auto, {seconds:.0f} s", *lines])


def work_in_parallel(url: str, folder: Path, n_workers: int) -> None:
    """Run workers in processes of their own until the study ends. A fork shares the imported modules."""
    children = []
    for _ in range(n_workers):
        child = os.fork()
        if child == 0:
            _work(url, folder)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(statuses):
        raise SystemExit(f"{sum(map(bool, statuses))} workers failed")


def _work(url: str, folder: Path) -> NoReturn:
    """Work in this process until the study ends, and leave without what the parent process would do at its end."""
    status = 1
    try:
        with open_store(url) as store:
            status = Worker(load_stored_study(store, "crowd"), folder, 1, lambda event: None).work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def count_repeated(found: Sequence[dict[str, Any]], space: Space, near: float) -> int:
    """Return how many parameter sets have an earlier one that differs by at most `near` in every range."""
    units = [tuple(_position(space, path, params[path]) for path in space) for params in found]

    def equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
        return all(x == y or (isinstance(x, float) and abs(x - y) <= near) for x, y in zip(a, b, strict=True))

    repeated = {j for (i, a), (j, b) in itertools.combinations(enumerate(units), 2) if equal(a, b)}
    return len(repeated)


def _position(space: Space, path: str, value: Any) -> Any:
    entry = space[path]
    if isinstance(entry, Choices):
        return value
    return unit_position(value, entry.low, entry.high, log=entry.log, complement_log=entry.complement_log)


if __name__ == "__main__":
    main()

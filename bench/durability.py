"""Measure what it costs SQLite to sync every transaction to the disk: synchronous = FULL against NORMAL.

python bench/durability.py [FOLDER]

FOLDER is on the disk to measure. The trials of the study do nothing, so no search has a larger share.
"""

import os
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

REPEATS, TRANSACTIONS, TRIALS, RUNGS = 7, 100, 20, 4

MODULE = f"""
from pydantic import BaseModel


class Config(BaseModel):
    x: float = 0.5


def train(config):
    for rung in range(1, {RUNGS + 1}):
        yield rung, config.x + 1 / rung
"""
STUDY = f"""
train: nothing:train
config: nothing:Config
rungs: {RUNGS}
space: {{x: {{low: 0.0, high: 1.0}}}}
sampler: {{name: random}}
pruner: {{name: none}}
budget: {{trials: {TRIALS}}}
"""


def main() -> None:
    """Count the transactions of a trial, measure one with both settings, and print what a trial costs."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        Path("nothing.py").write_text(MODULE)
        Path("nothing.yaml").write_text(STUDY)
        seconds, commits = search()
        cost: dict[str, list[float]] = {"NORMAL": [], "FULL": []}
        for n in range(REPEATS):
            for setting, values in cost.items():
                values.append(transaction(setting, n))
    print(f"a trial of {RUNGS} rungs that does nothing: {1000 * seconds:.0f} ms, {commits:.1f} transactions")
    for setting, values in cost.items():
        print(f"{setting:6} {_median_and_range([1000 * value for value in values])} ms per transaction")
    extra = [commits * (full - normal) for full, normal in zip(cost["FULL"], cost["NORMAL"], strict=True)]
    print(f"FULL costs {_median_and_range([100 * e / seconds for e in extra])} % of that trial")
    print(f"FULL costs 1 % of a trial of {_median_and_range([100 * e for e in extra])} s")


def search() -> tuple[float, float]:
    """Run the study with NORMAL; return seconds and write transactions, both per trial."""
    from hpo.queue.registry import register_study
    from hpo.storage.store import open_store
    from hpo.study.load import load_study
    from hpo.worker.worker import Worker

    commits = []
    with open_store("sqlite:///hpo.db", create=True) as store:
        stored = register_study(store, load_study("nothing.yaml"), None, {})
        sa.event.listen(store.engine, "commit", lambda connection: commits.append(connection))
        began = time.perf_counter()
        Worker(stored, Path("runs"), 1, lambda event: None).work()
        return (time.perf_counter() - began) / TRIALS, len(commits) / TRIALS


def transaction(setting: str, n: int) -> float:
    """Return the median seconds of a transaction that writes one row."""
    with closing(sqlite3.connect(f"{setting}-{n}.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {setting}")
        connection.execute("CREATE TABLE rows (text TEXT)")
        seconds = []
        for _ in range(TRANSACTIONS):
            began = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO rows VALUES (?)", ("x" * 200,))
            connection.execute("COMMIT")
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _median_and_range(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}, n = {len(values)})"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()

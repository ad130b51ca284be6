"""Measure what it costs SQLite to sync every transaction to the disk: synchronous = FULL against NORMAL.

python bench/durability.py [FOLDER]

FOLDER is on the disk to measure. The trials of the study do nothing, so no search has a larger ratio.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPEATS, TRIALS, RUNGS = 15, 10, 4

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
    """Run the study in turn with both settings, and compare the seconds."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        Path("nothing.py").write_text(MODULE)
        Path("nothing.yaml").write_text(STUDY)
        seconds: dict[str, list[float]] = {"NORMAL": [], "FULL": []}
        search("NORMAL", 0)  # imports
        for n in range(1, REPEATS + 1):
            for setting, values in seconds.items():
                values.append(search(setting, n))
    for setting, values in seconds.items():
        print(f"{setting:8} {_median_and_range([v / TRIALS * 1000 for v in values])} ms per trial")
    ratios = [full / normal for full, normal in zip(seconds["FULL"], seconds["NORMAL"], strict=True)]
    print(f"FULL / NORMAL {_median_and_range(ratios)}")


def search(setting: str, n: int) -> float:
    """Run the study in a new storage with a setting of `synchronous`; return the seconds."""
    from hpo.queue.registry import register_study
    from hpo.storage import engine
    from hpo.storage.store import open_store
    from hpo.study.load import load_study
    from hpo.worker.worker import Worker

    engine.SYNCHRONOUS = setting
    with open_store(f"sqlite:///{setting}-{n}.db", create=True) as store:
        stored = register_study(store, load_study("nothing.yaml"), None, {})
        began = time.perf_counter()
        Worker(stored, Path(f"runs-{setting}-{n}"), 1, lambda event: None).work()
        return time.perf_counter() - began


def _median_and_range(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}, n = {len(values)})"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()

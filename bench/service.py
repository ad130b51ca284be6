"""Measure `hpo status`, and reports and pruning decisions as a share of a trial.

python bench/service.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpo.optuna_internals.objects import get_study_id

REPEATS = 9


def main() -> None:
    """Run a study of the default size, and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        url = f"sqlite:///{folder}/runs/hpo.db"
        launch(url)
        status(url)
        share(url)


def launch(url: str) -> None:
    """Run three trials of beta2_sweep's base."""
    commands = ["launch", "--study", "beta2_sweep", "--trials", "3", "--workers", "2", "--storage", url, "--quiet"]
    subprocess.run([sys.executable, "-m", "hpo", *commands], check=True, stdout=subprocess.DEVNULL)


def status(url: str) -> None:
    """Compare `hpo status` with a Python process that imports Optuna and SQLAlchemy."""
    commands = {
        "hpo status": ["-m", "hpo", "status", "--storage", url],
        "import optuna, sqlalchemy": ["-c", "import optuna, sqlalchemy"],
        "python -c pass": ["-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(REPEATS):
        for name, arguments in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    for name, values in seconds.items():
        print(f"{name:28} {median_and_range(values, 's')}")
    check = (
        "import sys, hpo.cli.main, hpo.commands.show, hpo.analysis.snapshot; "
        "print('torch' in sys.modules or 'model' in sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    print(f"{'torch or model imported':28} {loaded.stdout.strip()}")


def share(url: str) -> None:
    """Measure a worker's storage operations at each rung, and their share of a trial's duration."""
    from optuna.trial import TrialState, create_trial

    from hpo.analysis.snapshot import read_snapshot
    from hpo.queue.registry import load_stored_study
    from hpo.search.pruning import CachedPruner
    from hpo.storage.store import open_store

    with open_store(url) as store:
        stored = load_stored_study(store, None)
        trials = [t.duration.total_seconds() for t in read_snapshot(store, None).trials if t.duration]
        rungs = stored.study.rungs
        pruner = CachedPruner(stored.optuna, stored.study.file.pruner.build(rungs), rungs)
        costs = []
        for _ in range(REPEATS):
            trial_id = store.optuna.create_new_trial(
                get_study_id(stored.optuna), create_trial(state=TrialState.RUNNING)
            )
            own = store.optuna.get_trial(trial_id)
            began = time.perf_counter()
            for rung in range(1, rungs + 1):
                store.optuna.set_trial_intermediate_value(trial_id, rung, 4.0)
                own.intermediate_values[rung] = 4.0
                pruner.decide(own)
            costs.append(time.perf_counter() - began)
            store.optuna.set_trial_state_values(trial_id, TrialState.FAIL)
    print(f"{f'{rungs} reports and decisions':28} {median_and_range(costs, 's')}")
    print(f"{'a trial':28} {median_and_range(trials, 's')}")
    shares = [cost / statistics.median(trials) for cost in costs]
    print(f"{'share of a trial':28} {statistics.median(shares):.3%} ({min(shares):.3%} to {max(shares):.3%})")


def median_and_range(values: list[float], unit: str) -> str:
    """Return median and range."""
    return f"{statistics.median(values):.3f} {unit} ({min(values):.3f} to {max(values):.3f}, n = {len(values)})"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()

"""Measure what a trial of a command costs beside the time of its script, on SQLite.

python bench/command.py

A trivial script runs alone and as the trials of a study with one worker, in turns. The cost of a trial is the time from
its start to the start of the next trial, less the time that the script takes alone. The CPU time of worker, guardian
and script is measured too, because it depends less on the load of the machine. It is the difference between a study and
one of half as many trials.
"""

import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRIALS, REPEATS, RUNGS = 20, 3, 4

SCRIPT = """
import sys
for step in (10, 20, 30, 40):
    print(f"step {step}: val loss {sys.argv[1]}")
"""
STUDY = f"""
command: [{sys.executable}, train.py, "{{x}}"]
metric: {{pattern: 'step (?P<step>\\d+): val loss (?P<val_loss>\\S+)'}}
steps: {{rungs: {RUNGS}, last: 40}}
space: {{x: {{low: 0.0, high: 1.0}}}}
pruner: none
"""


def main() -> None:
    """Run script and study in turns, and print the cost of a trial."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("train.py").write_text(SCRIPT)
        Path("trivial.yaml").write_text(STUDY)
        alone, costs, cpu = [], [], []
        for n in range(REPEATS):
            own = [script() for _ in range(TRIALS)]
            alone += own
            few, all_of_them = (search(f"runs-{n}-{count}", count) for count in (TRIALS // 2, TRIALS))
            costs += [seconds - statistics.median(own) for seconds in all_of_them[0]]
            cpu.append((all_of_them[1] - few[1]) / (TRIALS - TRIALS // 2))
    print(f"script alone: {_median_and_range(alone)} s")
    print(f"CPU time of a trial, script included: {_median_and_range(cpu)} s")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"cost of a trial beside its script: {_median_and_range(costs)} s (SQLite, one worker, {RUNGS} rungs)")


def script() -> float:
    """Return the seconds of the script alone."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "train.py", "0.5"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def search(out: str, n_trials: int) -> tuple[list[float], float]:
    """Run a study; return the seconds from the start of each trial to the start of the next, and the CPU time of all
    processes."""
    words = [
        "--study",
        "trivial",
        "--trials",
        str(n_trials),
        "--quiet",
        "--storage",
        f"sqlite:///{out}.db",
        "--out",
        out,
    ]
    before = _cpu_time()
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, "-m", "hpo", "launch", *words], check=True, **streams)
    folders = sorted(Path(out, "trivial", "trials").iterdir())
    starts = [(folder / "params.yaml").stat().st_mtime for folder in folders]
    return [after - earlier for earlier, after in itertools.pairwise(starts)], _cpu_time() - before


def _cpu_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _median_and_range(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()

"""Measure the CPU time of a launch in new interpreters and as forks of the tests' fork server, in turn.

python bench/forks.py

The launch runs four trials that do nothing, by two workers.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPEATS = 5


def main() -> None:
    from tests.support.command import environment, trivial
    from tests.support.fork_server import ForkServer, use_fork_server

    def launch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            trivial(Path(folder))
            command = [sys.executable, "-m", "hpo", "launch", "--study", "trivial.yaml", "--workers", "2", "--quiet"]
            subprocess.run(command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, check=True)

    new, forked = [], []
    for _ in range(REPEATS):
        start = cpu_seconds()
        launch()
        new.append(cpu_seconds() - start)
        start = cpu_seconds()
        empty = ForkServer()
        use_fork_server()
        launch()  # the first launch of a server also waits for its imports
        empty.close()
        once = cpu_seconds() - start
        start = cpu_seconds()
        server = ForkServer()
        launch()
        launch()
        server.close()
        forked.append(cpu_seconds() - start - once)
    print(f"new interpreters  {median_and_range(new)} s of CPU time")
    print(f"forks             {median_and_range(forked)} s of CPU time")
    print(f"ratio             {median_and_range([a / b for a, b in zip(new, forked, strict=True)])}")


def cpu_seconds() -> float:
    """Return the CPU time of all ended child processes, and of their ended children."""
    times = os.times()
    return times.children_user + times.children_system


def median_and_range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}, n = {len(values)})"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()

"""Measure a long study: commands, suggestions, pruning decisions, new workers, CPU time per trial.

python bench/scale.py [--trials 5000]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import TypeAdapter

from bench.crowd import Config, plant, study, train
from bench.service import median_and_range
from hpo.optuna_internals.objects import get_study_id
from hpo.queue.registry import StoredStudy, load_stored_study, register_study
from hpo.queue.slots import Claim
from hpo.search.pruners import Pruner
from hpo.search.pruning import CachedPruner
from hpo.search.samplers import Sampler
from hpo.storage.store import open_store
from hpo.worker.trial import trial_config
from tests.support.postgres import Postgres

COMMANDS = ("status", "trials --format csv", "show 7", "best")
SAMPLERS: tuple[tuple[dict[str, Any], int], ...] = (
    ({"name": "tpe"}, 20),
    ({"name": "tpe", "history": 1_000_000}, 20),
    ({"name": "tpe", "multivariate": False}, 8),
    ({"name": "random"}, 20),
    ({"name": "qmc"}, 20),
    ({"name": "nsga2"}, 8),
    ({"name": "cmaes"}, 8),
    ({"name": "gp"}, 5),
)
PRUNERS = ("median", "percentile", "halving", "hyperband", "wilcoxon")
N_RUNNING = 64
FEW, MANY = 24, 120  # trials of two runs; their difference is the CPU time of trials without that of the start


def main() -> None:
    """Measure on both storages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5000, help="finished trials; 64 more run")
    n = parser.parse_args().trials
    server = Postgres()
    with tempfile.TemporaryDirectory() as folder:
        try:
            server.start()
            for name, url in ("SQLite", f"sqlite:///{folder}/hpo.db"), ("Postgres", server.url()):
                print(f"{name}, {n:,} finished trials, {N_RUNNING} running")
                with open_store(url, create=True) as store:
                    seconds, _ = timed(lambda store=store: plant(store, n, N_RUNNING))
                print(f"  {'planted in':32} {seconds:.1f} s")
                commands(url)
                worker(url)
                trial(name, server, folder)
        finally:
            server.remove()


def commands(url: str, repeats: int = 5) -> None:
    """Measure commands, including the start of Python."""
    for command in COMMANDS:
        command_line = [sys.executable, "-m", "hpo", *command.split(), "--storage", url, "--study", "crowd"]
        costs = []
        for _ in range(repeats):
            before = _cpu()
            seconds, _ = timed(
                lambda command_line=command_line: subprocess.run(command_line, check=True, capture_output=True)
            )
            costs.append((seconds, _cpu() - before))
        print_cost(f"hpo {command}", costs)


FRESH = """
import sys, resource, time
from hpo.queue.registry import load_stored_study
from hpo.storage.store import open_store
with open_store(sys.argv[1]) as store:
    stored = load_stored_study(store, "crowd")
    before, began, spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    stored.optuna.get_trials(deepcopy=False)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{time.perf_counter() - began:.1f} s, CPU {time.process_time() - spent:.1f} s, {grown:.0f} MB")
"""


def worker(url: str) -> None:
    """Measure a worker's operations on a long study: the first read, suggestions and pruning decisions."""
    done = subprocess.run([sys.executable, "-c", FRESH, url], check=True, capture_output=True, text=True)
    print(f"  {'a new worker reads it in':32} {done.stdout.strip()}")
    with open_store(url) as store:
        stored = load_stored_study(store, "crowd")
        stored.optuna.get_trials(deepcopy=False)
        print_cost(
            "second read, unfinished trials only",
            [timed(lambda: stored.optuna.get_trials(deepcopy=False)) for _ in range(20)],
        )
        for fields, repeats in SAMPLERS:
            sampled = with_sampler(stored, fields)
            suggest_once(sampled)  # the first call imports modules and reads the trials
            sampler = " ".join(str(value) if key == "name" else f"{key}={value}" for key, value in fields.items())
            print_cost(f"suggestion, {sampler}", [suggest_once(sampled) for _ in range(repeats)])
        own = [t for t in stored.optuna.get_trials(deepcopy=False) if not t.state.is_finished()]
        for name in PRUNERS:
            print_cost(f"decision, {name}", [cost for some in own[:3] for cost in decisions(stored, name, some.number)])


def suggest_once(stored: StoredStudy) -> tuple[float, float]:
    """Return the cost of one suggestion."""
    storage = stored.store.optuna
    trial_id = storage.create_new_trial(get_study_id(stored.optuna), create_trial(state=TrialState.RUNNING))
    claim = Claim(1_000_000 + trial_id, 1, "search", None, None)
    own = storage.get_trial(trial_id)
    cost = timed(lambda: trial_config(stored, claim, own))
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
    return cost


def decisions(stored: StoredStudy, name: str, number: int) -> Iterator[tuple[float, float]]:
    """Yield the cost of each pruning decision of one trial after the first, which reads the trials."""
    pruner = TypeAdapter(Pruner).validate_python({"name": name})
    cached = CachedPruner(stored.optuna, pruner.build(stored.study.rungs), stored.study.rungs, refresh_s=1e9)
    own: FrozenTrial = create_trial(state=TrialState.RUNNING)
    own.number = number
    for rung, value in train(Config()):
        own.intermediate_values[rung] = value
        cost = timed(lambda: cached.decide(own))
        if rung > 1:
            yield cost


def trial(name: str, server: Postgres, folder: str) -> None:
    """Print the CPU time of a trial of 20 reports, with four concurrent workers."""
    spent = []
    for n_trials in (FEW, MANY):
        url = f"sqlite:///{folder}/{n_trials}.db" if name == "SQLite" else server.url(server.database())
        with open_store(url, create=True) as store:
            register_study(store, study(n_trials), None, {})
        environment = {**os.environ, "HPO_STORAGE": url, "OMP_NUM_THREADS": "1"}
        command_line = [
            sys.executable,
            "-m",
            "hpo",
            "worker",
            "--study",
            "crowd",
            "--allow-train",
            "bench.crowd:train",
            "--out",
            f"{folder}/{name}{n_trials}",
        ]
        before = _cpu(), _server(server)
        members = [subprocess.Popen(command_line, env=environment, stdout=subprocess.DEVNULL) for _ in range(4)]
        if sum(member.wait() for member in members):
            raise SystemExit("a worker failed")
        spent.append((_cpu() - before[0], _server(server) - before[1]))
    workers, database = (1000 * (b - a) / (MANY - FEW) for a, b in zip(*spent, strict=True))
    print(f"  {'CPU time of a trial of 20 reports':32} {workers:.0f} ms in 4 workers, {database:.0f} ms in the server")


def with_sampler(stored: StoredStudy, fields: dict[str, Any]) -> StoredStudy:
    file = stored.study.file.model_copy(update={"sampler": TypeAdapter(Sampler).validate_python(fields)})
    return replace(stored, study=replace(stored.study, file=file))


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return wall-clock seconds and CPU seconds of a call."""
    began, spent = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - spent


def print_cost(label: str, costs: list[tuple[float, float]]) -> None:
    """Print median and range of the wall-clock time, and the median of the CPU time, in ms."""
    wall = [1000 * seconds for seconds, _ in costs]
    cpu = statistics.median(1000 * seconds for _, seconds in costs)
    print(f"  {label:32} {median_and_range(wall, 'ms')}, CPU {cpu:.3f} ms")


def _cpu() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _server(server: Postgres) -> float:
    """Return the CPU seconds of the server's finished processes. The server has one process per connection."""
    time.sleep(0.5)  # the last processes are still exiting
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

"""Python imports this module at the start of each process of a scene. The variable FAULT names a function below.

The function kills a worker at a certain point, or limits its memory. This happens once in a scene: in the process that
first creates the file FAULT_MARK.
"""

import os
import random
import signal
import sys
from pathlib import Path


def first():
    try:
        os.close(os.open(os.environ["FAULT_MARK"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die():
    if first():
        os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, act=die):
    real = getattr(owner, name)

    def wrapped(*args, **kwargs):
        act()
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def after(owner, name, when, act=die):
    real = getattr(owner, name)

    def wrapped(*args, **kwargs):
        result = real(*args, **kwargs)
        if when(*args, **kwargs):
            act()
        return result

    setattr(owner, name, wrapped)


def first_report():
    from hpo.worker.reporter import Reporter

    before(Reporter, "report_values")


def report():
    """Die after the value is written, before the checkpoint."""
    from hpo.worker.reporter import Reporter

    after(Reporter, "report_values", lambda self, trial, wait: trial.rung == 2)


def checkpoint():
    """Die after the checkpoint of the second rung."""
    from hpo.runs import checkpoints

    after(checkpoints, "save_checkpoints", lambda runs, lane, config, folder, rung, best: rung == 2)


def probing():
    """Die inside a cool-down probe, after some of its updates."""
    from model.optim.schedule import CoolDown
    from model.train.trainer import Trainer

    def cools_down(self, table, live):
        return any(isinstance(run.schedule, CoolDown) for run in self.runs.values())

    after(Trainer, "_train_on", cools_down)


def completing():
    """Die after the checkpoint of the last rung, before the trial ends."""
    from hpo.worker.executor import TrialExecutor

    before(TrialExecutor, "complete")


def end():
    """Die in the transaction that ends a trial: everything is written, nothing is committed."""
    import sqlalchemy as sa
    from optuna.storages import RDBStorage

    ending = []
    before(RDBStorage, "set_trial_state_values", lambda: ending.append(True))
    sa.event.listen(sa.Engine, "commit", lambda connection: ending and die())


def ended():
    """Die between the end of the trial and the end of its slot."""
    from hpo.worker.reporter import Reporter

    before(Reporter, "close_slot")


def closed():
    """Die after the slot is done, before the worker receives the answer."""
    from hpo.worker.reporter import Reporter

    after(Reporter, "close_slot", lambda *_, **__: True)


def claimed():
    """Die between the claim of a slot and the creation of its trial."""
    import hpo.worker.executor

    before(hpo.worker.executor, "open_trial")


def created():
    """Die in the transaction that creates a trial: everything is written, nothing is committed."""
    import sqlalchemy as sa
    from optuna.storages import RDBStorage

    creating = []
    before(RDBStorage, "_create_new_trial", lambda: creating.append(True))
    sa.event.listen(sa.Engine, "commit", lambda connection: creating and die())


def pausing():
    """Die between the report of a mark and the pause of the trial."""
    import hpo.worker.promotion

    before(hpo.worker.promotion, "pause")


def paused():
    """Die after a trial is paused, before the worker receives the answer."""
    import hpo.worker.promotion

    after(hpo.worker.promotion, "pause", lambda *_: True)


def promoted():
    """Die after a trial is promoted, before the worker opens the trial."""
    import hpo.worker.promotion

    real = hpo.worker.promotion.promote

    def promote(*args):
        claim = real(*args)
        if claim is not None:
            die()
        return claim

    hpo.worker.promotion.promote = promote


def pruning():
    """Die in the transaction that ends the paused trials: the first is written, nothing is committed."""
    import hpo.queue.pausing

    after(hpo.queue.pausing, "_prune", lambda *_: True)


def clock():
    """Set the clock an hour late in one process, and an hour early in all others."""
    import time

    from optuna.storages._rdb import storage

    by, now, datetime = (3600 if first() else -3600), time.time, storage.datetime

    class Wrong(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromtimestamp(now() + by, tz)

    time.time = lambda: now() + by
    storage.datetime = Wrong


def memory():
    """Limit every worker to 200 MB more than it uses when it starts to train."""
    import resource

    from hpo.worker.pack import PackRunner

    def limit():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + 200 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))

    before(PackRunner, "_train", limit)


def registering():
    """Die in the launcher after half of the slots."""
    import hpo.queue.budget

    hpo.queue.budget.CHUNK = 3
    chunks = []

    def count():
        chunks.append(1)
        if len(chunks) == 2:
            die()

    before(hpo.queue.budget, "_insert", count)


if os.environ.get("FAULT") == "registering" and "launch" in getattr(sys, "orig_argv", ()):
    registering()


def blocked():
    """Put a file in the place of the second trial's folder, and do not pause after a failure."""
    import hpo.worker.executor

    hpo.worker.executor.PAUSE_S = 0.0
    for run_folder in Path("runs").glob("*/"):
        (run_folder / "trials").mkdir(exist_ok=True)
        (run_folder / "trials" / "0001").write_text("")


def impatient():
    """Report an outage every second."""
    import hpo.storage.retry

    hpo.storage.retry.NOTE_S = 1.0


if os.environ.get("FAULT") == "impatient":
    impatient()

if "SCENE_CORES" in os.environ and "launch" in getattr(sys, "orig_argv", ()):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, random.sample(cores, min(len(cores), int(os.environ["SCENE_CORES"]))))

if "FAULT" in os.environ and "worker" in getattr(sys, "orig_argv", ()):
    import hpo.worker.worker

    hpo.worker.worker.PROBE_S = 0.5
    if os.environ["FAULT"] not in ("", "registering"):
        globals()[os.environ["FAULT"]]()

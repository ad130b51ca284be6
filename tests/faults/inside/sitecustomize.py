"""Python loads this at its start wherever a scene runs: a worker dies, or lacks memory, exactly where FAULT says.

It happens once in a scene: in the process that makes the file FAULT_MARK, the first to come there.
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
        found = real(*args, **kwargs)
        if when(*args, **kwargs):
            act()
        return found

    setattr(owner, name, wrapped)


def first_report():
    from hpo.worker.reporter import Reporter

    before(Reporter, "report_values")


def report():
    """After the value was written, before the checkpoint."""
    from hpo.worker.reporter import Reporter

    after(Reporter, "report_values", lambda self, trial, wait: trial.rung == 2)


def checkpoint():
    """After the checkpoint of the second rung."""
    from hpo.runs import checkpoints

    after(checkpoints, "save_checkpoints", lambda runs, lane, config, folder, rung, best: rung == 2)


def tell():
    """In the transaction that ends a trial: all is written, nothing committed."""
    import sqlalchemy as sa
    from optuna.storages import RDBStorage

    telling = []
    before(RDBStorage, "set_trial_state_values", lambda: telling.append(True))
    sa.event.listen(sa.Engine, "commit", lambda connection: telling and die())


def told():
    """Between the trial's end and its slot's."""
    from hpo.worker.reporter import Reporter

    before(Reporter, "close_slot")


def closed():
    """After the slot's end, before the worker has noted it."""
    from hpo.worker.reporter import Reporter

    after(Reporter, "close_slot", lambda *_, **__: True)


def claimed():
    """Between the claim of a slot and its trial."""
    import hpo.worker.executor

    before(hpo.worker.executor, "open_trial")


def made():
    """In the transaction that makes a trial: all is written, nothing committed."""
    import sqlalchemy as sa
    from optuna.storages import RDBStorage

    making = []
    before(RDBStorage, "_create_new_trial", lambda: making.append(True))
    sa.event.listen(sa.Engine, "commit", lambda connection: making and die())


def clock():
    """See the wrong time: an hour late in one process, an hour early in all others."""
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
    """Leave every worker 200 MB more than it has when it begins to train."""
    import resource

    from hpo.worker.pack import PackRunner

    def limit():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + 200 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))

    before(PackRunner, "_train", limit)


if "SCENE_CORES" in os.environ and "launch" in getattr(sys, "orig_argv", ()):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, random.sample(cores, min(len(cores), int(os.environ["SCENE_CORES"]))))

if "FAULT" in os.environ and "worker" in getattr(sys, "orig_argv", ()):
    import hpo.worker.worker

    hpo.worker.worker.PROBE_S = 0.5
    if os.environ["FAULT"]:
        globals()[os.environ["FAULT"]]()

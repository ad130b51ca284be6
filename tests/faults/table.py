"""The table of faults: how each is provoked, on which storages, and which event types it leaves."""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.faults.files import (
    block_trial_folder,
    damage_metrics,
    diverge,
    fill_checkpoints,
    fill_database,
    fill_prepared_data,
    flip_bits,
    garble_checkpoints,
    raise_in_training,
    remove_run_folder,
    run_out_of_memory,
)
from tests.faults.processes import (
    freeze_worker,
    interrupt,
    join_with_another_version,
    kill_at,
    kill_at_registration,
    kill_everything,
    kill_launcher,
    launch_twice,
    set_clock_back,
    terminate_worker,
    turn_clock,
    with_asha,
)
from tests.faults.scene import ASHA, GPT, PROBED, Scene
from tests.faults.storages import (
    create_again,
    cut_connections,
    lock_briefly,
    lock_storage,
    remove_database,
    rename_study,
    restart_server,
    restore_older_storage,
    stop_server,
    stop_server_beyond_patience,
    write_protect,
)


@dataclass(frozen=True)
class Fault:
    """A fault of a study. `provoke` starts the study and causes the fault. The test then launches the study again.

    event_types: events that the table of events must hold afterwards. not_on: storages on which the fault cannot occur,
    each with the reason.
    """

    name: str
    provoke: Callable[[Scene], None]
    event_types: frozenset[str] = frozenset()
    not_on: Mapping[str, str] = field(default_factory=dict)


LOST = frozenset({"lost"})
PREEMPTED = frozenset({"preempted"})
ERROR = frozenset({"error"})
UNREACHABLE = frozenset({"away"})
SERVED = {"postgres": "the server keeps its files open"}
FILES = {"sqlite": "a file needs no server"}
CLIENTS = {"sqlite": "there is no connection: a statement is a call in the worker's own process"}
BEFORE = {"postgres": "it happens before the storage is opened"}

FAULTS = [
    Fault("worker killed before its first report", kill_at("first_report"), LOST),
    Fault("worker killed between a report and its checkpoint", kill_at("report"), LOST),
    Fault("worker killed between rungs", kill_at("checkpoint", GPT), LOST),
    Fault("worker killed inside a cool-down probe", kill_at("probing", PROBED), LOST),
    Fault("worker killed between claim and trial", kill_at("claimed"), LOST),
    Fault("worker killed in the transaction that creates a trial", kill_at("created"), LOST),
    Fault("worker killed in the transaction that ends a trial", kill_at("end"), LOST),
    Fault("worker killed between the end of a trial and its slot", kill_at("ended"), LOST),
    Fault("worker killed after its slot is done", kill_at("closed")),
    Fault("worker killed between a mark and the pause of its trial", kill_at("pausing", ASHA), LOST),
    Fault("worker killed after its trial is paused", kill_at("paused", ASHA)),
    Fault("worker killed after it has promoted a trial", kill_at("promoted", ASHA), LOST),
    Fault("worker killed in the transaction that ends paused trials", kill_at("pruning", ASHA)),
    Fault("launcher killed", kill_launcher, PREEMPTED),
    Fault("launcher and workers killed at once", kill_everything, LOST),
    Fault("SIGTERM", interrupt(signal.SIGTERM), PREEMPTED),
    Fault("SIGINT", interrupt(signal.SIGINT), PREEMPTED),
    Fault("SIGINT twice", interrupt(signal.SIGINT, 2), PREEMPTED),
    Fault("SIGTERM to one worker", terminate_worker, PREEMPTED),
    Fault("SIGSTOP past the lease, then SIGCONT", freeze_worker, LOST),
    Fault("SIGSTOP past the lease while trials pause and are promoted", with_asha(freeze_worker), LOST),
    Fault("storage locked while trials pause and are promoted", with_asha(lock_briefly)),
    Fault("Postgres restarted while trials pause and are promoted", with_asha(restart_server), not_on=FILES),
    Fault("Postgres killed and down for 20 s", stop_server, UNREACHABLE, FILES),
    Fault("Postgres restarted three times", restart_server, not_on=FILES),
    Fault("connections cut during statements", cut_connections, not_on=CLIENTS),
    Fault("storage locked by another process", lock_storage, UNREACHABLE),
    Fault("full disk: checkpoints", fill_checkpoints, frozenset({"disk", "quarantined", "released"})),
    Fault("full disk: database", fill_database),
    Fault("full disk: prepared data", fill_prepared_data, not_on=BEFORE),
    Fault("read-only storage", write_protect, PREEMPTED),
    Fault("clocks of workers wrong by an hour", turn_clock),
    Fault("two launches at the same time", launch_twice),
    Fault("database file removed", remove_database, LOST, SERVED),
    Fault("run folder removed", remove_run_folder),
    Fault("study renamed while it runs", rename_study, frozenset({"renamed"})),
    Fault("study deleted and created again while it runs", create_again),
    Fault("launcher killed while it registers a study", kill_at_registration),
    Fault("training code raises PermissionError, SystemExit, KeyboardInterrupt", raise_in_training, ERROR),
    Fault("folder of a trial cannot be written", block_trial_folder, frozenset({"disk"})),
    Fault("Postgres down for longer than any patience", stop_server_beyond_patience, UNREACHABLE, FILES),
    Fault("clock set back by an hour", set_clock_back, LOST),
    Fault("loss is NaN", diverge, frozenset({"diverged"})),
    Fault("out of memory", run_out_of_memory, frozenset({"oom"})),
    Fault("corrupt checkpoint", garble_checkpoints, frozenset({"preempted", "restarted"})),
    Fault("checkpoint with flipped bits", flip_bits, frozenset({"preempted", "restarted"})),
    Fault("storage older than the checkpoint", restore_older_storage, frozenset({"preempted", "lost"})),
    Fault("damaged metrics.jsonl", damage_metrics, PREEMPTED),
    Fault("worker of another version", join_with_another_version, PREEMPTED),
]

"""The commands of Slurm: the states of jobs, signals to jobs, and their end."""

import getpass
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from hpo.errors import WorkFailed
from hpo.launcher.slurm_options import short_message

LOOK_S = 3.0  # seconds that `hpo status` and `hpo doctor` wait for squeue
ANSWER_S = 60.0  # seconds that a command may take. Slurm's own limit is shorter, unless its controller is overloaded.
FIELDS = ("JobArrayID", "State", "exit_code", "Reason", "NodeList")
STARTED = ("RUNNING", "COMPLETING")
# States after which a job does not run again. Jobs that Slurm requeues are pending.
FAILURES = ("TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "DEADLINE", *FAILURES)


class JobState(NamedTuple):
    """The state of a job.

    name: as Slurm prints it. status: exit status of the batch script, negative for a signal. reason: why a pending job
    waits. node: where the job runs or ran, "" before.
    """

    name: str
    status: int
    reason: str
    node: str


def read_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the state of each job by its id, such as 12 or 12_0. Jobs that have ended some minutes ago are missing.

    Raises:
        WorkFailed: Slurm does not answer.
    """
    main_ids = sorted({job_id.partition("_")[0] for job_id in job_ids})
    layout = ",".join(f"{field}:|" for field in FIELDS)
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(main_ids)}", f"--Format={layout}"]
    try:
        output = _run(command)
    except WorkFailed as failed:
        if "Invalid job id" not in str(failed):
            raise
        return {}
    states = {}
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|")[: len(FIELDS)]]
        if len(fields) == len(FIELDS):  # other lines name the cluster
            job_id, name, status, reason, node = fields
            states[job_id] = JobState(name, _exit_status(status), reason, node)
    return {job_id: state for job_id, state in states.items() if job_id in job_ids}


def _exit_status(text: str) -> int:
    """Return an exit status, negative for a signal. Slurm prints what wait() returns, or STATUS:SIGNAL."""
    status, colon, number = text.partition(":")
    if colon:
        return -int(number) if int(number) else int(status)
    with suppress(ValueError):
        return os.waitstatus_to_exitcode(int(status))
    return 1


def job_name(study: str) -> str:
    """Return the name of the jobs that run a study."""
    return f"hpo-{study}"


def queue_line(study: str) -> str:
    """Return how many jobs of this user run a study and how many wait, "" if there are none or Slurm is missing."""
    if shutil.which("squeue") is None:
        return ""
    chosen = [f"--name={job_name(study)}", f"--user={getpass.getuser()}"]
    try:
        output = _run(["squeue", "--noheader", "--array", "--format=%T|%r", *chosen], LOOK_S)
    except WorkFailed:
        return ""
    jobs = [line.partition("|") for line in output.splitlines()]
    if not jobs:
        return ""
    pending = [reason for state, _, reason in jobs if state not in STARTED]
    return "slurm: " + queue_text(len(jobs) - len(pending), len(jobs), pending)


def queue_text(n_started: int, n: int, reasons: Sequence[str]) -> str:
    """Return how many of n workers have started. reasons: why each of the others waits."""
    why = sorted(set(reasons) - {"", "None"})
    jobs = "job is" if len(reasons) == 1 else "jobs are"
    text = f"{n_started} of {n} workers have started; {len(reasons)} {jobs} pending"
    return text + (f" ({', '.join(why)})" if why else "")


def signal_batch(job_ids: Sequence[str], number: signal.Signals) -> None:
    """Send a signal to the workers of running jobs, but not to the processes that they have started."""
    _run(["scancel", "--batch", f"--signal={number.name.removeprefix('SIG')}", *job_ids])


def cancel_pending(job_ids: Sequence[str]) -> None:
    """Cancel the jobs that have not started."""
    _run(["scancel", "--state=PENDING", *job_ids])


def cancel(job_ids: Sequence[str]) -> None:
    """End jobs: Slurm sends SIGTERM to all of their processes, and SIGKILL after its KillWait."""
    _run(["scancel", *job_ids])


def _run(command: Sequence[str], patience: float = ANSWER_S) -> str:
    """Return what a command of Slurm prints.

    Raises:
        WorkFailed: it failed or did not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=patience, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkFailed(f"{command[0]}: {error}") from None
    if done.returncode:
        raise WorkFailed(f"{command[0]}: {short_message(done.stderr)}")
    return done.stdout

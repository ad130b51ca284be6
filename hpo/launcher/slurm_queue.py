"""The commands of Slurm: the states of jobs, signals to jobs, and their end."""

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from hpo.errors import WorkFailed
from hpo.launcher.slurm_options import short_message

ANSWER_S = 60.0  # seconds that a command may take. Slurm's own limit is shorter, unless its controller is overloaded.
FIELDS = ("JobArrayID", "State", "exit_code", "Reason", "NodeList")
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
        job_id, name, status, reason, node = (field.strip() for field in line.split("|")[: len(FIELDS)])
        states[job_id] = JobState(name, os.waitstatus_to_exitcode(int(status)), reason, node)
    return {job_id: state for job_id, state in states.items() if job_id in job_ids}


def signal_batch(job_ids: Sequence[str], number: signal.Signals) -> None:
    """Send a signal to the workers of running jobs, but not to the processes that they have started."""
    _run(["scancel", "--batch", f"--signal={number.name.removeprefix('SIG')}", *job_ids])


def cancel_pending(job_ids: Sequence[str]) -> None:
    """Cancel the jobs that have not started."""
    _run(["scancel", "--state=PENDING", *job_ids])


def cancel(job_ids: Sequence[str]) -> None:
    """End jobs: Slurm sends SIGTERM to all of their processes, and SIGKILL after its KillWait."""
    _run(["scancel", *job_ids])


def _run(command: Sequence[str]) -> str:
    """Return what a command of Slurm prints.

    Raises:
        WorkFailed: it failed or did not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkFailed(f"{command[0]}: {error}") from None
    if done.returncode:
        raise WorkFailed(f"{command[0]}: {short_message(done.stderr)}")
    return done.stdout

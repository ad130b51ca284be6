"""A worker as a job of Slurm: how jobs are submitted, and what runs in them. submitit writes the batch script."""

import contextlib
import importlib.metadata
import io
import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.errors import Problem
from hpo.launcher.slurm_options import short_message, warning_seconds
from hpo.launcher.slurm_queue import job_name
from hpo.runs.resources import set_thread_environment
from hpo.worker.events import EVENTS, WARNING_GRACE_S

JOB_ENDED = '{"job": "ended"}'  # last line of a worker's output, after which the launcher asks Slurm for its status


@dataclass(frozen=True)
class SlurmWorker:
    """What a job runs: one `hpo worker`, in the process of the batch script, so that signals reach it directly.

    submitit stores it in a file that other users may read, so it holds no URL of a storage.
    """

    version: str
    arguments: Sequence[str]

    def __call__(self, number: int) -> None:
        """Run the worker. If SIGUSR1 has announced the end of the job, requeue the job, which then continues.

        Raises:
            SystemExit: always, with the exit status of the worker.
        """
        for ignored in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2):  # submitit has set handlers of its own
            signal.signal(ignored, signal.SIG_DFL)
        cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or "1"
        set_thread_environment(int(cpus))
        output = os.dup(1)  # the worker writes its events there, and makes standard output its log
        try:
            status = self._run()
        finally:
            os.write(output, f"{JOB_ENDED}\n".encode())
        if status == 128 + signal.SIGUSR1:
            _requeue()
        sys.exit(status)

    def _run(self) -> int:
        version = importlib.metadata.version("hpo")
        if version != self.version:
            rule = f"hpo: must have the launcher's version {self.version} on all nodes, this node has {version}"
            print(f"{rule}; install {self.version} here", file=sys.stderr)
            return Problem.status
        sys.argv = ["hpo", "worker", *self.arguments]
        try:
            runpy.run_module("hpo", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0


def _requeue() -> None:
    """Requeue the job of this process. If the cluster does not allow this, the launcher submits another job."""
    done = subprocess.run(
        ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"the job is not requeued: {short_message(done.stderr)}", file=sys.stderr)


def submit_workers(
    folder: Path, options: Mapping[str, str], arguments: Sequence[str], environment: Mapping[str, str], n: int
) -> list[Any]:
    """Submit an array of n workers; return a job of submitit for each.

    folder: of scripts and logs, on a disk that the nodes share. options: of sbatch. arguments: of `hpo worker`.

    Raises:
        Problem: sbatch refuses the jobs.
    """
    import submitit

    own = {key: True if value == "true" else value for key, value in options.items()}
    # exec: the signal of the option --signal=B:... reaches the process of the batch script only
    executor = submitit.SlurmExecutor(folder=folder, python=f"exec {shlex.quote(sys.executable)}")
    executor.update_parameters(
        job_name=job_name(arguments[arguments.index("--study") + 1]),
        time=None,  # submitit would set five minutes
        wckey=None,
        use_srun=False,
        array_parallelism=n,
        additional_parameters={"requeue": True, "export": "ALL", **own},
    )
    work = SlurmWorker(importlib.metadata.version("hpo"), tuple(arguments))
    grace = {EVENTS: "json", WARNING_GRACE_S: f"{warning_seconds(options):g}"}
    with _variables({**environment, **grace}), contextlib.redirect_stderr(io.StringIO()):
        try:
            return executor.map_array(work, range(n))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise Problem(f"--slurm: sbatch refuses the jobs: {short_message(str(error))}") from None


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process for a while. sbatch copies them into the job, with the storage's URL.

    A command line or the batch script would show the URL to other users.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

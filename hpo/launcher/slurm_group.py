"""Workers as an array of Slurm jobs. Slurm chooses the nodes, and each job is one worker.

Everything else works as on one machine: leases in the storage decide which worker trains which trial. The launcher
submits the jobs, reads their output from the shared disk, and submits another job for a worker that was lost. A job
needs no launcher: it ends when no trial is left, and is requeued when its time is over.
"""

import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from hpo.console import command_line, say
from hpo.errors import Problem, WorkFailed
from hpo.launcher import slurm_queue
from hpo.launcher.processes import WorkerGroup, WorkerProcess
from hpo.launcher.slurm_process import LOST, SlurmProcess
from hpo.launcher.slurm_worker import submit_workers
from hpo.worker.events import Event

POLL_S = (1.0, 30.0)  # seconds between two calls of squeue: (shortest, longest); longer if nothing changes
HURRY_S = 10.0  # seconds for which squeue is called most often, because a job is about to end
STOP_S = 40.0  # seconds that workers have to release their trials before their jobs are cancelled
QUEUE_WAIT_S = 10.0  # seconds after which pending jobs are reported


class SlurmWorkerGroup(WorkerGroup):
    """A group of workers that are jobs of Slurm. A thread calls squeue and scancel, which may take long."""

    def __init__(
        self,
        options: Mapping[str, str],
        arguments: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        folder: Path,
    ) -> None:
        """Submit one job for each environment.

        options: of sbatch. The other arguments: see WorkerGroup.

        Raises:
            Problem: sbatch refuses the jobs.
        """
        self._options, self._folder = options, folder / "slurm"
        self._arguments = ["--follow", "--until-idle", *arguments]
        self._processes: list[SlurmProcess] = []
        self._n_signals = 0
        self._n_pending, self._report_at = -1, time.monotonic() + QUEUE_WAIT_S
        self._silence = ""  # why Slurm does not answer
        self._changed_at = self._hurry_until = time.monotonic()
        self._wake: queue.SimpleQueue[str] = queue.SimpleQueue()  # its put() may interrupt itself in a signal handler
        study = self._arguments[self._arguments.index("--study") + 1]
        if earlier := slurm_queue.queue_line(study):
            remedy = f"`{command_line('scancel', f'--name={slurm_queue.job_name(study)}')}` ends them"
            say(f"note: jobs of an earlier launch serve this study too ({earlier.removeprefix('slurm: ')}); {remedy}")
        jobs = submit_workers(self._folder, options, self._arguments, environments[0], len(environments))
        self._jobs = deque(jobs)  # submitted, and not assigned to a worker yet
        super().__init__(self._arguments, environments, folder)
        self._thread = threading.Thread(target=self._watch_jobs, name="slurm", daemon=True)
        self._thread.start()

    def _start_process(self, log: Path, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
        """Return the job of a worker: of the array at first, later a new one. The log becomes a link to the job's."""
        try:
            if not self._jobs:
                self._jobs.extend(submit_workers(self._folder, self._options, self._arguments, environment, 1))
            job = self._jobs.popleft()
        except Problem as problem:  # it may succeed later
            process = SlurmProcess("", log, self._hurry)
            process.end(LOST, str(problem))
        else:
            process = SlurmProcess(job.job_id, job.paths.stdout, self._hurry)
            with suppress(OSError):
                log.unlink(missing_ok=True)
                log.symlink_to(Path(self._folder.name, job.paths.stderr.name))
        self._processes.append(process)
        return cast("subprocess.Popen[str]", process)

    def events(self, wait: float) -> Iterator[Event]:
        """Yield the events that have arrived, and a note when the number of pending jobs has changed."""
        yield from super().events(wait)
        running = [process for process in map(_job, self.workers) if process.poll() is None]
        pending = [process for process in running if process.is_pending()]
        if time.monotonic() >= self._report_at and len(pending) != max(0, self._n_pending):
            n_started = sum(process.started for process in map(_job, self.workers))
            reasons = [process.state.reason for process in pending]
            yield {"event": "note", "text": slurm_queue.queue_text(n_started, len(self.workers), reasons)}
            self._n_pending = len(pending)
        if self._silence:
            yield {"event": "note", "text": f"Slurm does not answer: {self._silence}"}
            self._silence = ""

    def is_active(self) -> bool:
        """Return whether a worker runs or will run. After one has found no trial left, jobs that have never started are
        cancelled.

        A requeued job, and a job that replaces a lost one, may have an interrupted trial to resume.
        """
        first_jobs = self._processes[: len(self.workers)]
        if any(process.poll() == 0 for process in map(_job, self.workers)):
            for process in first_jobs:
                if process.is_pending() and not process.started and not process.unneeded:
                    process.unneeded = True
                    self._hurry()
        return super().is_active()

    def cancel_pending(self) -> None:
        """Cancel all pending jobs, because the study has ended."""
        for process in self._processes:
            process.has_no_work = True
        self._hurry()

    def _signal_groups(self, number: signal.Signals) -> None:
        """Do nothing, so that the jobs continue while the launcher is suspended."""

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all workers, and cancel pending jobs. The thread does both, also for a signal handler."""
        self._stopping = True
        self._n_signals += 1
        self._hurry()

    def stop(self, patience: float = STOP_S) -> None:
        """Stop all workers; cancel the jobs of those that do not end."""
        left = [process for process in self._processes if process.poll() is None]
        if left:
            self.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + patience
            for process in left:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, deadline - time.monotonic()))
            if ids := [process.job_id for process in left if process.poll() is None]:
                with suppress(WorkFailed):
                    slurm_queue.cancel(ids)
            for process in left:
                process.end(LOST)
        self._wake.put("close")
        self._thread.join(slurm_queue.ANSWER_S)

    def _hurry(self) -> None:
        self._wake.put("hurry")

    def _watch_jobs(self) -> None:
        """Update the states of the jobs, and send the requested signals, until the group is stopped."""
        while True:
            try:
                if self._wake.get(timeout=self._pause()) == "close":
                    return
                self._hurry_until = time.monotonic() + HURRY_S
            except queue.Empty:
                pass
            try:
                self._update()
                self._end_jobs()
                self._silence = ""
            except WorkFailed as failed:
                self._silence = str(failed)
                time.sleep(POLL_S[0])

    def _pause(self) -> float:
        now, (shortest, longest) = time.monotonic(), POLL_S
        return shortest if now < self._hurry_until else min(longest, max(shortest, (now - self._changed_at) / 10))

    def _update(self) -> None:
        live = [process for process in list(self._processes) if process.poll() is None]
        states = slurm_queue.read_states([process.job_id for process in live]) if live else {}
        for process in live:
            state = states.get(process.job_id)
            if state != process.state:
                self._changed_at = time.monotonic()
            process.update(state)

    def _end_jobs(self) -> None:
        """Send the requested signals to running workers, and cancel pending jobs that are not needed."""
        live = [process for process in list(self._processes) if process.poll() is None]
        unneeded = [p.job_id for p in live if p.is_pending() and (p.is_unneeded() or self._n_signals)]
        if unneeded:
            slurm_queue.cancel_pending(unneeded)
        late = [p for p in live if p.state.name == "RUNNING" and p.n_signals < self._n_signals]
        if late:
            slurm_queue.signal_batch([p.job_id for p in late], signal.SIGTERM)
            for process in late:
                process.n_signals += 1


def _job(worker: WorkerProcess) -> SlurmProcess:
    return cast(SlurmProcess, worker.process)

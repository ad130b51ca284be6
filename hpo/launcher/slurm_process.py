"""A worker that is a job of Slurm, as the launcher sees it."""

import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from hpo.launcher.processes import RESTART_STATUSES
from hpo.launcher.slurm_queue import ENDED, FAILURES, STARTED, JobState
from hpo.launcher.slurm_worker import JOB_ENDED

LOST = -signal.SIGKILL  # exit status of a worker that Slurm or a failure of its node has ended
READ_S = 0.5  # seconds between two reads of the output


class SlurmProcess:
    """A job, with the methods of subprocess.Popen that a WorkerGroup uses.

    job_id: such as 12_0. state: the last known one. started: whether the job has run.
    n_signals: signals that were sent to the worker. unneeded: whether the launcher cancels it before its start.
    has_no_work: whether the study has ended, so that the launcher cancels it also if it was requeued.
    """

    def __init__(self, job_id: str, output: Path, on_end: Callable[[], None]) -> None:
        """Watch a submitted job. output: file of its standard output. on_end: called when the worker says that it
        ends."""
        self.job_id, self.state = job_id, JobState("PENDING", 0, "", "")
        self.returncode: int | None = None
        self.started, self.unneeded, self.has_no_work, self.n_signals = False, False, False, 0
        self._output, self._on_end = output, on_end
        self._ended = threading.Event()
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.stdout = self._lines()

    def poll(self) -> int | None:
        """Return the exit status, None while the job waits or runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the job; return its exit status."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"job {self.job_id}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def end(self, status: int, note: str = "") -> None:
        """Regard the job as ended."""
        if self.returncode is None:
            if note:
                self._note("note", note)
            self.returncode = status
        self._ended.set()

    def is_pending(self) -> bool:
        """Return whether the job waits in the queue, also after it was requeued."""
        return self.returncode is None and self.state.name not in STARTED

    def is_unneeded(self) -> bool:
        """Return whether to cancel the job if it is pending. One that has started may have claimed a trial."""
        return self.has_no_work or (self.unneeded and not self.started)

    def update(self, state: JobState | None) -> None:
        """Take over the state that Slurm reports; None: Slurm no longer knows the job."""
        if state is None:
            self.end(LOST, f"job {self.job_id} is no longer known to Slurm")
            return
        before, self.state = self.state, state
        self.started = self.started or state.name in STARTED
        if state.name in ENDED:
            self._end(state)
        elif state.name == "RUNNING" and before.name != "RUNNING":
            self._note("placed", f"job {self.job_id} runs on {state.node}")
        elif self.started and self.is_pending() and before.name in STARTED:
            self._note("note", f"job {self.job_id} is requeued")

    def _end(self, state: JobState) -> None:
        if state.name == "FAILED" and not self._output.exists():
            self._note("note", f"job {self.job_id} wrote no log; --out must be on a disk that the nodes share")
        if state.name in FAILURES:
            self.end(LOST, f"job {self.job_id} ended on {state.node}: {state.name.lower().replace('_', ' ')}")
        elif state.name == "CANCELLED" and self.is_unneeded():
            self.end(0)
        elif state.name == "CANCELLED":
            self.end(state.status or 128 + signal.SIGTERM)
        elif state.status == 128 + signal.SIGUSR1:  # its time was over, and the cluster did not requeue it
            self.end(RESTART_STATUSES[0])
        else:
            self.end(state.status)

    def _note(self, event: str, text: str) -> None:
        self._notes.put(json.dumps({"event": event, "text": text}))

    def _lines(self) -> Iterator[str]:
        """Yield the lines of the job's output and notes about the job, until it has ended."""
        offset, rest = 0, b""
        while True:
            ended, data = self._ended.is_set(), b""
            with suppress(OSError), self._output.open("rb") as file:  # opened anew, so that NFS shows what is new
                file.seek(offset)
                data = file.read()
            offset += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.decode("utf-8", "replace") == JOB_ENDED:
                    self._on_end()
                else:
                    yield line.decode("utf-8", "replace")
            with suppress(queue.Empty):
                while True:
                    yield self._notes.get_nowait()
            if ended and not data:
                return
            self._ended.wait(READ_S) if not ended else time.sleep(READ_S)

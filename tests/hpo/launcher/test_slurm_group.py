"""Which pending jobs the launcher cancels. Slurm is replaced; tests/integrations/test_slurm.py runs jobs."""

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpo.launcher import slurm_group, slurm_queue
from hpo.launcher.slurm_group import SlurmWorkerGroup
from hpo.launcher.slurm_process import SlurmProcess
from hpo.launcher.slurm_queue import JobState
from tests.support.command import until

PENDING, RUNNING = JobState("PENDING", 0, "Priority", ""), JobState("RUNNING", 0, "None", "n1")
IDLE, KILLED = JobState("COMPLETED", 0, "None", "n1"), JobState("NODE_FAIL", 0, "None", "n1")


class Queue:
    """Stands for Slurm: states of jobs that a test sets, and the jobs that were cancelled."""

    def __init__(self, folder: Path) -> None:
        self.states: dict[str, JobState] = {}
        self.folder = folder

    def submit(self, *arguments: object) -> list[SimpleNamespace]:
        """Return pending jobs, as submit_workers does. The last argument is their number."""
        n = arguments[-1]
        assert isinstance(n, int)
        ids = [f"{len(self.states) + i}" for i in range(n)]
        self.states |= dict.fromkeys(ids, PENDING)
        paths = [SimpleNamespace(stdout=self.folder / f"{i}.out", stderr=self.folder / f"{i}.err") for i in ids]
        return [SimpleNamespace(job_id=i, paths=path) for i, path in zip(ids, paths, strict=True)]

    def read(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return dict(self.states)

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs as scancel does without a signal."""
        self.states |= dict.fromkeys(job_ids, JobState("CANCELLED", 0, "None", ""))

    def cancel_pending(self, job_ids: Sequence[str]) -> None:
        self.cancel([i for i in job_ids if self.states[i].name == "PENDING"])

    def signal(self, job_ids: Sequence[str], number: signal.Signals) -> None:
        self.cancel(job_ids)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Queue:
    jobs = Queue(tmp_path)
    monkeypatch.setattr(slurm_group, "POLL_S", (0.01, 0.01))
    monkeypatch.setattr(slurm_group, "submit_workers", jobs.submit)
    monkeypatch.setattr(slurm_queue, "queue_line", lambda study: "")
    monkeypatch.setattr(slurm_queue, "read_states", jobs.read)
    monkeypatch.setattr(slurm_queue, "cancel_pending", jobs.cancel_pending)
    monkeypatch.setattr(slurm_queue, "cancel", jobs.cancel)
    monkeypatch.setattr(slurm_queue, "signal_batch", jobs.signal)
    return jobs


@pytest.fixture
def group(jobs: Queue, tmp_path: Path) -> Iterator[SlurmWorkerGroup]:
    """A group of three workers, of which the first two run."""
    group = SlurmWorkerGroup({}, ["--study", "planted"], [{}] * 3, tmp_path)
    jobs.states |= {"0": RUNNING, "1": RUNNING}
    seen(group, lambda first, second, third: first.started and second.started)
    yield group
    group.stop(patience=5.0)


def seen(group: SlurmWorkerGroup, condition: Callable[[SlurmProcess, SlurmProcess, SlurmProcess], bool]) -> None:
    """Wait until the processes of the three workers meet a condition; restart crashed workers meanwhile."""

    def met() -> bool:
        list(group.restart_crashed())
        return group.is_active() and condition(*map(slurm_group._job, group.workers))

    assert until(met)


def test_job_that_was_interrupted_and_requeued_is_kept_after_another_worker_was_idle(
    group: SlurmWorkerGroup, jobs: Queue
) -> None:
    jobs.states["0"] = IDLE
    jobs.states["1"] = PENDING  # it has freed its trial, and scontrol has requeued it
    seen(group, lambda first, second, third: first.poll() == 0 and third.poll() == 0)
    assert [jobs.states[i].name for i in "012"] == ["COMPLETED", "PENDING", "CANCELLED"]
    jobs.states["1"] = RUNNING
    seen(group, lambda first, second, third: second.state == RUNNING)
    jobs.states["1"] = IDLE
    assert until(lambda: not list(group.events(0.1)) and not group.is_active())
    assert not group.failed()


def test_job_that_replaces_a_lost_one_is_kept_after_another_worker_was_idle(
    group: SlurmWorkerGroup, jobs: Queue
) -> None:
    jobs.states["0"] = IDLE
    seen(group, lambda first, second, third: third.poll() == 0)
    jobs.states["1"] = KILLED
    seen(group, lambda first, second, third: second.job_id == "3")
    for _ in range(3):
        assert group.is_active()
    second = slurm_group._job(group.workers[1])
    assert not second.unneeded
    assert jobs.states["3"] == PENDING

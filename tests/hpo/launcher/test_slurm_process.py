"""How the launcher understands the states of Slurm's jobs. tests/integrations/test_slurm.py runs jobs."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpo.launcher.slurm_process import LOST, SlurmProcess
from hpo.launcher.slurm_queue import JobState, queue_text
from hpo.launcher.slurm_worker import JOB_ENDED

PENDING, RUNNING = JobState("PENDING", 0, "Priority", ""), JobState("RUNNING", 0, "None", "n1")


def ended(name: str, status: int) -> JobState:
    return JobState(name, status, "None", "n1")


def process_after(states: Sequence[JobState | None], output: Path) -> tuple[SlurmProcess, int]:
    """Return a job that went through these states, and how often its worker said that it ends."""
    ends: list[str] = []
    process = SlurmProcess("7_0", output, lambda: ends.append(""))
    for state in states:
        process.update(state)
    texts = [json.loads(line).get("text") for line in process.stdout]
    process.texts = texts  # type: ignore[attr-defined]
    return process, len(ends)


@pytest.mark.parametrize(
    ("states", "status", "note"),
    [
        ([PENDING, RUNNING, ended("COMPLETED", 0)], 0, "job 7_0 runs on n1"),
        ([ended("FAILED", 2)], 2, "job 7_0 wrote no log; --out must be on a disk that the nodes share"),
        ([RUNNING, ended("FAILED", -9)], -9, None),  # a killed worker: the launcher submits another
        ([RUNNING, ended("FAILED", 138)], 75, None),  # its time was over, and Slurm did not requeue it: another
        ([RUNNING, ended("TIMEOUT", 0)], LOST, "job 7_0 ended on n1: timeout"),
        ([RUNNING, ended("NODE_FAIL", 0)], LOST, "job 7_0 ended on n1: node fail"),
        ([RUNNING, ended("OUT_OF_MEMORY", -9)], LOST, "job 7_0 ended on n1: out of memory"),
        ([RUNNING, PENDING, RUNNING, ended("COMPLETED", 0)], 0, "job 7_0 is requeued"),
        ([PENDING, ended("CANCELLED", 0)], 143, None),  # by the user: no other job
        ([RUNNING, ended("CANCELLED", 143)], 143, None),
        ([RUNNING, None], LOST, "job 7_0 is no longer known to Slurm"),
    ],
)
def test_states_of_a_job_are_those_of_a_worker(
    states: list[JobState | None], status: int, note: str | None, tmp_path: Path
) -> None:
    process, _ = process_after(states, tmp_path / "missing")
    assert process.wait(0) == process.poll() == status
    assert note is None or note in process.texts  # type: ignore[attr-defined]


def test_output_is_read_to_its_end_without_the_line_of_the_job(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text(f'{{"text": "a"}}\n{{"text": "b"}}\n{JOB_ENDED}\n')
    process, n_ends = process_after([ended("COMPLETED", 0)], output)
    assert process.texts == ["a", "b"]  # type: ignore[attr-defined]
    assert n_ends == 1


def test_job_that_no_worker_needs_has_not_failed(tmp_path: Path) -> None:
    process = SlurmProcess("7", tmp_path / "missing", lambda: None)
    process.unneeded = True
    process.update(ended("CANCELLED", 0))
    assert process.poll() == 0


def test_queue_is_one_line() -> None:
    assert queue_text(0, 4, ["Priority"] * 4) == "0 of 4 workers have started; 4 jobs are pending (Priority)"
    assert queue_text(4, 5, ["Resources"]) == "4 of 5 workers have started; 1 job is pending (Resources)"
    assert queue_text(1, 1, []) == "1 of 1 workers have started; 0 jobs are pending"


@pytest.mark.parametrize("name", ["RUNNING", "COMPLETING"])
def test_job_that_started_before_it_was_cancelled_is_needed(name: str, tmp_path: Path) -> None:
    process = SlurmProcess("7", tmp_path / "missing", lambda: None)
    process.unneeded = True
    process.update(ended(name, 0))
    process.update(PENDING)  # requeued
    assert not process.is_unneeded()
    process.update(ended("CANCELLED", 143))  # by the user
    assert process.poll() == 143

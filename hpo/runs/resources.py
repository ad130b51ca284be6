"""A machine's cores and GPUs, shared out as environment: torch reads it once, when it is imported."""

import os
import shutil
import subprocess
from collections.abc import Sequence

from hpo.errors import Problem


def available_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that computes with so many threads.

    PASSIVE: by default threads wait for each other in a loop that burns the core. Two processes of two
    threads on two cores then train at a small fraction of the speed that they have when waiting threads sleep
    (bench/cores.py).
    """
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def threads_in_use() -> int:
    """Return the threads that this process computes with: the first level of OMP_NUM_THREADS, else all cores."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else available_cores()


def set_thread_environment(threads: int) -> None:
    """Set this process's environment, leaving alone what the user has set."""
    if os.environ.get("OMP_NUM_THREADS"):
        threads = threads_in_use()
    for name, value in thread_environment(threads).items():
        os.environ.setdefault(name, value)


def list_gpus() -> list[str]:
    """Return the numbers of this machine's NVIDIA GPUs, without torch."""
    smi = shutil.which("nvidia-smi")
    listed = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False).stdout if smi else ""
    return [row.split(":")[0].removeprefix("GPU ").strip() for row in listed.splitlines() if row.startswith("GPU ")]


def check_gpus(wanted: Sequence[str]) -> None:
    """Check that GPUs of these numbers are here.

    Raises:
        Problem: one is not.
    """
    have = list_gpus() if wanted else []
    if any(gpu not in have for gpu in wanted):
        there = f"GPUs {', '.join(have)}" if have else "no NVIDIA GPU"
        raise Problem(f"--gpus: this machine has {there}, got {','.join(wanted)}; leave --gpus out to train on the CPU")

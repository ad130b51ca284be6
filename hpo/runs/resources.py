"""The cores and GPUs of this machine.

Threads are set by environment variables, which torch reads once, when it is imported.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence

from hpo.errors import Problem

AUTO_PACK = 0  # size of packs that stands for the fastest one


def pack_text(pack: int) -> str:
    """Return the size of packs as the option --pack."""
    return "auto" if pack == AUTO_PACK else str(pack)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_environment(threads: int) -> dict[str, str]:
    """Return the environment variables of a process that computes with this number of threads.

    OMP_WAIT_POLICY is PASSIVE because waiting threads use their core by default. Two processes with two threads each
    on two cores then train at a small fraction of their speed with PASSIVE (bench/cores.py).
    """
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def threads_in_use() -> int:
    """Return the number of threads of this process: the first number in OMP_NUM_THREADS, else all cores."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else available_cores()


def set_thread_environment(threads: int) -> None:
    """Set the thread variables of this process. Variables that the user has set keep their value."""
    if os.environ.get("OMP_NUM_THREADS"):
        threads = threads_in_use()
    for name, value in thread_environment(threads).items():
        os.environ.setdefault(name, value)


def list_gpus() -> list[str]:
    """Return the indices of this machine's NVIDIA GPUs. Uses nvidia-smi instead of torch, which loads slowly."""
    smi = shutil.which("nvidia-smi")
    output = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False).stdout if smi else ""
    return [row.split(":")[0].removeprefix("GPU ").strip() for row in output.splitlines() if row.startswith("GPU ")]


def check_gpus(requested: Sequence[str]) -> None:
    """Check that this machine has GPUs with these indices.

    Raises:
        Problem: It lacks one.
    """
    gpus = list_gpus() if requested else []
    if any(gpu not in gpus for gpu in requested):
        has = f"GPUs {', '.join(gpus)}" if gpus else "no NVIDIA GPU"
        raise Problem(
            f"--gpus: this machine has {has}, got {','.join(requested)}; leave --gpus out to train on the CPU"
        )

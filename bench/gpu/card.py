"""The card: what it is, and the rates of large matrix products and copies that other figures refer to."""

import os
import platform
import shutil
import statistics
import subprocess
from pathlib import Path

import torch

from bench.gpu.records import Emit, Row, Settings
from bench.gpu.timing import product_rates, seconds_of


def describe(settings: Settings) -> Row:
    """Return the name, the memory and the software of the device."""
    row: Row = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    if settings.device != "cuda":
        return {"card": f"CPU {platform.machine()}", **row}
    card = torch.cuda.get_device_properties(0)
    return {
        "card": card.name,
        "memory GB": round(card.total_memory / 1e9, 1),
        "multiprocessors": card.multi_processor_count,
        "CUDA": torch.version.cuda,
        "driver": _driver(),
        "triton": _triton(),
        "MPS": "running" if mps_runs() else "not running",
        **row,
    }


def mps_runs() -> bool:
    """Return whether the Multi-Process Service of CUDA runs, with which processes share a card without time slices."""
    # The folder is CUDA's default.
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    return (pipes / "control").exists()


def measure(settings: Settings, emit: Emit) -> None:
    """Emit the card, its matrix products and its copies."""
    emit("Card", **describe(settings))
    for dtype, rate in product_rates(settings).items():
        emit("Matrix product", type=dtype, **{"TFLOP/s": round(rate / 1e12, 3)})
    n = 2**18 if settings.tiny else 2**30
    source, target = (torch.rand(n, device=settings.device) for _ in range(2))
    target.copy_(source)
    seconds = statistics.median(seconds_of(lambda: target.copy_(source), settings.device) for _ in range(5))
    emit("Matrix product", type="copy on the device", **{"GB/s": round(8 * n / seconds / 1e9)})


def _driver() -> str | None:
    smi = shutil.which("nvidia-smi")
    command = [smi or "", "--query-gpu=driver_version", "--format=csv,noheader"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout if smi else ""
    return output.strip().partition("\n")[0] or None


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__

"""Free memory of a device, and the correction of memory estimates by earlier measurements on that device."""

import json
import os
import platform
import statistics
from contextlib import suppress
from pathlib import Path

from model.cache import cache_root, locked, write_whole
from model.errors import ConfigError

MAX_MEASUREMENTS = 9  # per device; the correction is their median
# Bytes. Below this estimate, memory of the libraries dominates the measurement, which says nothing about larger runs.
MIN_ESTIMATE = 256 * 2**20


def free_memory(device: str) -> int:
    """Return the bytes that a run in this process can use. device: cpu, cuda or mps."""
    if device == "cpu":
        return free_main_memory()
    import torch

    if device == "mps":
        return torch.mps.recommended_max_memory()
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved()  # reserved memory is reusable by this process


def free_main_memory(root: Path = Path("/")) -> int:
    """Return the bytes of main memory that are available without swapping, within the limits of the control groups.

    root: root of the file system with /proc and /sys.
    """
    return min([_unused_memory(root), *_control_group_memory(root)])


def _unused_memory(root: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        text = (root / "proc/meminfo").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # not Linux: total memory


def _control_group_memory(root: Path) -> list[int]:
    """Return the free bytes of this process's control group and its parents, if limited. Versions 1 and 2."""
    free = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            top = root / "sys/fs/cgroup" / controllers
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            names = names if controllers else ("memory.max", "memory.current", "inactive_file")
            own = top / path.lstrip("/")
            for group in [own, *(parent for parent in own.parents if parent.is_relative_to(top))]:
                with suppress(OSError, ValueError):  # the file does not exist, or the limit is "max"
                    free.append(_group_memory(group, *names))
    return free


def _group_memory(group: Path, limit: str, usage: str, cached: str) -> int:
    """Return limit minus usage in bytes. Cached files that can be dropped do not count as used."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used = int((group / usage).read_text()) - int(stat.get(cached, 0))
    return int((group / limit).read_text()) - used


def calibrated(estimate: int, device: str) -> int:
    """Return an estimate in bytes, corrected by earlier measurements on this device."""
    return round(estimate * calibration_factor(device))


def calibration_factor(device: str) -> float:
    """Return the median ratio of measurement to estimate on this device, or 1 without measurements."""
    ratios = _read_measurements().get(device_name(device), [])
    return statistics.median(ratios) if ratios else 1.0


def record_measurement(estimate: int, measured: int, device: str) -> None:
    """Save the ratio of measured to estimated bytes of a run for later estimates.

    Estimates below MIN_ESTIMATE are ignored, and so is a cache directory that cannot be written.
    """
    if estimate < MIN_ESTIMATE or measured <= 0:
        return
    with suppress(ConfigError), locked(_file()):
        table = _read_measurements()
        table[device_name(device)] = [*table.get(device_name(device), []), measured / estimate][-MAX_MEASUREMENTS:]
        write_whole(_file(), [json.dumps(table, indent=1).encode()])


def device_name(device: str) -> str:
    """Return the name of the device: the GPU model, or the device type and the processor architecture."""
    if device != "cuda":
        return f"{device} {platform.machine()}"
    import torch

    return torch.cuda.get_device_name()


def _file() -> Path:
    return cache_root() / "memory.json"


def _read_measurements() -> dict[str, list[float]]:
    """Return the measurements by device; none if the file is missing or damaged."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        table = json.loads(_file().read_text("utf-8"))
        return {str(device): [float(ratio) for ratio in ratios] for device, ratios in table.items()}
    return {}

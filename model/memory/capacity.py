"""What memory a device has to give, and how far estimates of what a run needs were off there."""

import json
import os
import platform
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

from model.cache import cache_root, locked, write_whole
from model.errors import ConfigError

KEPT = 9  # of the last measurements on a device, whose median counts
# Below it the libraries' own pages are most of what is measured, and say nothing of larger runs.
LEAST = 256 * 2**20


def capacity(device: str) -> int:
    """Return the bytes that a run of this process may use on cpu, cuda or mps."""
    if device == "cpu":
        return available()
    import torch

    if device == "mps":
        return torch.mps.recommended_max_memory()
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved()  # what was reserved is ours to use again


def available(root: Path = Path("/")) -> int:
    """Return the bytes of main memory that can be had without swapping, under the limits of the control groups.

    root: of the file system in which /proc and /sys are.
    """
    return min([_unused(root), *_left_in_groups(root)])


def _unused(root: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        text = (root / "proc/meminfo").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # no Linux: what there is at all


def _left_in_groups(root: Path) -> list[int]:
    """Return what each control group with a limit has left: our own group and those it is in, of both versions."""
    found = []
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
                with suppress(OSError, ValueError):  # not there, or its limit is "max"
                    found.append(_left(group, *names))
    return found


def _left(group: Path, limit: str, usage: str, cached: str) -> int:
    """Return limit less usage; files that were read and can be dropped are not counted as used."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used = int((group / usage).read_text()) - int(stat.get(cached, 0))
    return int((group / limit).read_text()) - used


def calibrated(estimate: int, device: str) -> int:
    """Return an estimate corrected by what was measured on this device before."""
    return round(estimate * factor(device))


def factor(device: str) -> float:
    """Return the median of the last measurements over their estimates; 1 where there are none."""
    seen = _read().get(name(device), [])
    return statistics.median(seen) if seen else 1.0


def learn(estimate: int, measured: int, device: str) -> None:
    """Remember what a run was estimated and measured to need; a small one, or a cache that is read-only, is let go."""
    if estimate < LEAST or measured <= 0:
        return
    with suppress(ConfigError), locked(_file()):
        table = _read()
        table[name(device)] = [*table.get(name(device), []), measured / estimate][-KEPT:]
        write_whole(_file(), [json.dumps(table, indent=1).encode()])


def name(device: str) -> str:
    """Return what this device is called, as torch or the processor's maker has it."""
    if device != "cuda":
        return f"{device} {platform.machine()}"
    import torch

    return torch.cuda.get_device_name()


def _file() -> Path:
    return cache_root() / "memory.json"


def _read() -> dict[str, Any]:
    with suppress(OSError, ValueError):
        table = json.loads(_file().read_text("utf-8"))
        if isinstance(table, dict):
            return table
    return {}

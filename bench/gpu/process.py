"""Run a part in a process of its own, which a time limit ends."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.gpu.plan import Part
from bench.gpu.records import RecordFile, Row, Settings, without_paths

LOG = 20_000  # characters of the end of a part's output that are kept


class Running:
    """A part that runs, with its record file and its log."""

    def __init__(self, part: Part, settings: Settings, folder: Path, until: float, context: Any) -> None:
        slug = part.name.replace(" ", "-")
        self.part, self.records, self.log = part, RecordFile(folder / f"{slug}.jsonl"), folder / f"{slug}.log"
        self.began = time.monotonic()
        self.until = min(until, self.began + part.seconds * settings.patience)
        self.process: BaseProcess = context.Process(target=_run_part, args=(part, settings, self.records, self.log))
        self.process.start()

    def wait(self) -> Row:
        """Return the result when the part has ended or its time is over."""
        self.process.join(max(0.0, self.until - time.monotonic()))
        late = self.process.is_alive()
        assert self.process.pid
        with suppress(ProcessLookupError):  # it may have left processes behind
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join(10)  # a process that waits for its driver may outlive the signal
        seconds = round(time.monotonic() - self.began, 1)
        status = "stopped at its time limit" if late else "failed" if self.process.exitcode else "done"
        row: Row = {"part": self.part.name, "status": status, "seconds": seconds, "records": self.records.read()}
        log = without_paths(self.log.read_text("utf-8", "replace").strip()[-LOG:]) if self.log.exists() else ""
        row["log"] = log or ("" if status == "done" else f"exit status {self.process.exitcode}")
        return row


def start_method(device: str) -> Any:
    """Return how parts start: as forks, which have imported torch already, or as new interpreters.

    This process never uses the device, because a fork could not use it then. If a library has done so when it was
    imported, forks fail, and parts start as new interpreters.
    """
    forks = multiprocessing.get_context("fork")
    probe = forks.Process(target=_use_device, args=(device,))
    probe.start()
    probe.join(60)
    works = probe.exitcode == 0
    probe.kill()
    return forks if works else multiprocessing.get_context("spawn")


def _use_device(device: str) -> None:
    import torch

    torch.ones(2, device=device).sum().item()


def _run_part(part: Part, settings: Settings, records: RecordFile, log: Path) -> None:
    """Run a part in this process, which leads a process group of its own."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        part.run(settings, records.emit, **part.arguments)
    except BaseException:
        sys.stdout.flush()
        with log.open("a") as file:
            traceback.print_exc(file=file)
        os._exit(1)

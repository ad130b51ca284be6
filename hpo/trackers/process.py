"""Trackers beside a launch: one process for each tracker, for which no training waits."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpo.console import command_line, say
from hpo.runs.run_dir import open_log
from hpo.storage.url import default_url, has_no_password, normalise_url
from hpo.trackers.names import wait_seconds

PIPE = "HPO_TRACK_PIPE"  # environment variable of a tracker whose standard input ends when the launch ends
STOPPED_S = 5.0  # how long a launch that a signal has stopped waits for a tracker to write the last values, at most
SILENT_S = 2.0  # how long it waits without a message
RESTART_S, LONGEST_RESTART_S = 10.0, 300.0  # pause before a tracker that has crashed is restarted; it doubles


class TrackerProcess:
    """The process that copies a study to one tracker, and a thread that shows its messages and restarts it."""

    def __init__(self, name: str, storage: str, study: str, out: Path, log: Path) -> None:
        """name: of the tracker. storage: URL. out: folder of the runs. log: file of its standard error."""
        self.name, self._storage, self._study, self._out, self._log = name, storage, study, out, log
        self._process: subprocess.Popen[str] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        """Run the process and show its messages until it has written everything or the launch ends."""
        pause = RESTART_S
        while not self._closing.is_set():
            status = self._run()
            if status == 0 or self._closing.is_set():
                return
            self._say(f"ended with status {status}; it is restarted in {pause:.0f} s (see {self._log})")
            self._closing.wait(pause)
            pause = min(LONGEST_RESTART_S, 2 * pause)

    def _run(self) -> int | None:
        """Run the process to its end; return its status, None if it cannot start."""
        try:
            process = self._start()
        except OSError as error:
            self._say(f"cannot start: {error.strerror}")
            return None
        self._process = process
        if self._closing.is_set():
            process.stdin.close()  # type: ignore[union-attr]
        assert process.stdout is not None
        for line in process.stdout:
            self._say(line.rstrip())
        return process.wait()

    def _start(self) -> subprocess.Popen[str]:
        arguments = [self.name, "--study", self._study, "--out", str(self._out), "--follow"]
        with open_log(self._log) as log:
            return subprocess.Popen(
                [sys.executable, "-m", "hpo", "track", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "HPO_STORAGE": self._storage, PIPE: "1"},
                start_new_session=True,  # Ctrl-C ends the launch, which then closes the pipe
            )

    def request_end(self) -> None:
        """Ask the process to write the last values and to end."""
        self._closing.set()
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # type: ignore[union-attr]

    def wait(self, deadline: float) -> bool:
        """Wait until the process has ended; return whether it has written everything."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self._process is not None and self._process.poll() == 0

    def kill(self) -> None:
        """Kill the process, with what its client has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _say(self, text: str) -> None:
        say(f"note: {self.name}: {text}")


class Trackers:
    """The trackers of a launch."""

    def __init__(self, processes: Sequence[TrackerProcess], study: str, arguments: Sequence[str]) -> None:
        """arguments: of the `hpo track` with which a user continues."""
        self._processes, self._study, self._arguments = processes, study, arguments
        self.patience = wait_seconds()

    def close(self) -> None:
        """Wait some seconds until all trackers have written the last values, then kill those that have not."""
        for process in self._processes:
            process.request_end()
        started_at = time.monotonic()
        try:
            if behind := self._behind(started_at + min(SILENT_S, self.patience)):
                names = ", ".join(process.name for process in behind)
                say(f"waiting at most {self.patience:.0f} s for the last values to reach {names}; Ctrl-C skips it")
                self._behind(started_at + self.patience)
        except KeyboardInterrupt:
            pass
        behind = self._behind(started_at)
        for process in self._processes:
            process.kill()
        for process in behind:
            command = command_line("hpo", "track", process.name, *self._arguments)
            say(f"note: {process.name} does not have all values of {self._study}; `{command}` writes them")

    def _behind(self, deadline: float) -> list[TrackerProcess]:
        """Wait until all processes have ended, and return those that have not written everything."""
        return [process for process in self._processes if not process.wait(deadline)]


@contextmanager
def tracking(names: Sequence[str], storage: str, study: str, out: Path, folder: Path) -> Iterator[Trackers]:
    """Copy a study to trackers during the block.

    storage: URL. out: folder of the runs. folder: run folder of the study, which receives the logs.
    """
    processes = [TrackerProcess(n, storage, study, out.absolute(), folder / f"track-{n}.log") for n in names]
    arguments = ["--study", study]
    if storage != normalise_url(default_url(None)):
        arguments += ["--storage", storage if has_no_password(storage) else "..."]
    arguments += ["--out", str(out)] if out != Path("runs") else []
    trackers = Trackers(processes, study, arguments)
    try:
        yield trackers
    finally:
        trackers.close()

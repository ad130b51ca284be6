"""The process of one run of a command: its guardian, its output, and how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hpo.errors import CommandFailed
from hpo.runs.run_dir import open_log

GUARDIAN = Path(__file__).with_name("guardian.py")
GRACE_S = 10.0  # seconds that a command has to end after SIGTERM
# Bytes of one file of the output. Of longer outputs, the first file, the last and the one before it are kept.
LOG_BYTES = 8 * 2**20
TAIL_BYTES = 16 * 2**10  # of the end of the output, in which the cause of a failure is searched
LINE_BYTES = 2**16  # longer lines are cut
TAIL_LINES = 20  # of an error message
HIDDEN = ("HPO_STORAGE", "HPO_EVENTS")  # variables of the worker: a password, and the form of its events

OnLine = Callable[[str], None]


def _start_guardian(
    words: Sequence[str], env: Mapping[str, str], status_end: int, memory_gb: float | None
) -> "subprocess.Popen[bytes]":
    """Start the guardian of a command, which starts the command and writes its status to a pipe."""
    inherited = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARDIAN), str(status_end), str(int((memory_gb or 0) * 1e9)), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**inherited, "PYTHONUNBUFFERED": "1", **env},  # buffered lines would reach the pruner too late
        pass_fds=[status_end],
        start_new_session=True,  # the launcher kills the group of a worker that has died
        bufsize=0,
    )


class CommandProcess:
    """A running command. Its output goes to `output.log`, line by line to `on_line`, and to a tail in memory."""

    def __init__(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        on_line: OnLine | None,
        changed: threading.Event,
        memory_gb: float | None = None,
    ) -> None:
        """Start a command in the current folder.

        on_line: receives each line of the output, in a thread. changed: set when the command has ended.
        memory_gb: of all its processes; if they use more, they are killed. None for no limit.
        """
        self._memory_gb, self._used = memory_gb, 0
        self._changed = changed
        status, status_end = os.pipe()
        self._output = Output(log, on_line)
        try:
            self._guardian = _start_guardian(words, env, status_end, memory_gb)
        except BaseException:
            os.close(status)
            self._output.close()
            raise
        finally:
            os.close(status_end)
        self._status_fd, self.ended = status, False
        self.status: int | None = None
        self.error = ""  # why the command could not be started
        self._reader = threading.Thread(target=self._read, name="command-output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._guardian.stdout is not None
        with self._guardian.stdout as stream:
            while chunk := stream.read(2**18):
                self._output.feed(chunk)
        self._output.close()
        self._read_status()
        self._guardian.wait()
        if self._guardian.stdin is not None:
            self._guardian.stdin.close()
        self.ended = True
        self._changed.set()

    def _read_status(self) -> None:
        with os.fdopen(self._status_fd, "rb") as stream:
            lines = stream.read().decode("utf-8", "replace").splitlines()
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "error":
                self.error = rest
            elif word == "memory":
                self._used = int(rest)
            elif word == "exit":
                self.status = int(rest)

    def terminate(self, grace: float = GRACE_S) -> None:
        """Send SIGTERM to the process group, and SIGKILL to what is left after the grace period. Does not wait."""
        self._send(f"term {grace:.3f}\n")

    def kill(self) -> None:
        """Kill all processes of the command, and wait until they are gone."""
        self._send("kill\n")
        self.wait(GRACE_S)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all processes of the command are gone and its output is read; return whether they are."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.ended and (deadline is None or time.monotonic() < deadline):
            self._reader.join(0.5 if deadline is None else max(0.0, min(0.5, deadline - time.monotonic())))
        return self.ended

    def _send(self, line: str) -> None:
        assert self._guardian.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._guardian.stdin.write(line.encode())

    def tail(self) -> str:
        """Return the last lines of the output."""
        return self._output.tail()

    def failure(self, expected: str) -> CommandFailed:
        """Return why a command that has ended did not reach its last rung.

        expected: what it should have reported, if it ended with status 0.
        """
        tail = self.tail()
        last = "\n".join(tail.splitlines()[-TAIL_LINES:])
        shown = f"\nThe last lines of its output:\n{last}" if last.strip() else "\nIt printed nothing."
        if self.error:
            return CommandFailed(f"the command cannot be started: {self.error}")
        if self._used:
            return CommandFailed(
                f"out of memory: the processes of the command used {self._used / 1e9:.2f} GB, and "
                f"limits.memory_gb is {self._memory_gb:g}{shown}"
            )
        if self.status is None:
            return CommandFailed(f"the guardian of the command was killed{shown}", by_signal=True)
        if self.status == 0:
            return CommandFailed(f"the command ended with status 0, {expected}{shown}")
        number = -self.status if self.status < 0 else self.status - 128 if self.status > 128 else 0
        if number in signal.valid_signals() and number:
            by = number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
            return CommandFailed(f"the command was ended by {signal.Signals(number).name}{shown}", by_signal=by)
        return CommandFailed(f"the command ended with status {self.status}: {_cause(tail)}{shown}")


def _cause(tail: str) -> str:
    """Return the last line of an output that is neither empty nor a part of a stack."""
    lines = [line for line in tail.splitlines() if line.strip()]
    named = [line for line in lines if not line[0].isspace()] or lines
    return named[-1].strip()[:300] if named else "it printed nothing"


class Output:
    """The output of a command: in files of bounded size, as lines, and its end in memory."""

    def __init__(self, path: Path, on_line: OnLine | None) -> None:
        """Append to the file `path`. An output that cannot be written, as on a full disk, is read nevertheless."""
        self._path, self._on_line = path, on_line
        self._tail = self._rest = b""
        self._fd: int | None = None
        self._size = 0
        self._open()

    def _open(self) -> None:
        with contextlib.suppress(OSError), open_log(self._path) as file:
            self._fd = os.dup(file.fileno())
            self._size = os.fstat(self._fd).st_size

    def feed(self, chunk: bytes) -> None:
        """Write a part of the output, and pass on the lines that it completes."""
        self._write(chunk)
        self._tail = (self._tail + chunk)[-TAIL_BYTES:]
        if self._on_line is None:
            return
        *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line:
                self._on_line(line[:LINE_BYTES].decode("utf-8", "replace"))
        self._rest = self._rest[:LINE_BYTES]

    def close(self) -> None:
        """Pass on a last line without an end."""
        if self._rest and self._on_line is not None:
            self._on_line(self._rest.decode("utf-8", "replace"))
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def tail(self) -> str:
        """Return the end of the output."""
        return self._tail.decode("utf-8", "replace").replace("\r", "\n")

    def _write(self, chunk: bytes) -> None:
        if self._fd is None:
            return
        with contextlib.suppress(OSError):
            if self._size + len(chunk) > LOG_BYTES:
                self._rotate()
            if self._fd is not None:
                self._size += os.write(self._fd, chunk)

    def _rotate(self) -> None:
        """Keep the first file and the previous one, and start another."""
        first, previous = (self._path.with_suffix(f".{name}.log") for name in ("first", "previous"))
        os.replace(self._path, previous if first.exists() else first)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._open()

"""Run one command, and leave none of its processes behind. A program of its own, started by `command_process`.

    python guardian.py STATUS_FD MEMORY WORD...

The worker holds the other end of standard input. A line `term S` sends SIGTERM to the command's process group, and
SIGKILL to whatever is left after S seconds. The line `kill` sends SIGKILL immediately. At the end of the input the
worker has died, however it died, and everything is killed at once: another worker may resume the trial.

The guardian is a session of its own, so that signals of the terminal and of the launcher do not reach it. On Linux it
is the subreaper of the command: a process whose parent has ended becomes a child of the guardian, even in a session of
its own, as the ranks of torchrun are. If these processes use more than MEMORY bytes (0: no limit), they are killed, and
`memory N` is written to STATUS_FD. After the command has ended, its exit status is written to STATUS_FD:
`exit N`, N negative for a signal, or `error MESSAGE` if it could not be started.

This file imports the standard library only, and is run with `python -I -S`, which takes 15 ms.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
POLL_S = 1.0  # seconds between two looks at whether the worker is suspended
GIVE_UP_S = 30.0  # a process in an uninterruptible system call cannot be killed


def main() -> int:
    """Run the command of the command line."""
    status_fd, limit, words, worker = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:], os.getppid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.set_inheritable(status_fd, False)
    os.set_blocking(0, False)
    child = _start(words, status_fd)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # so that the output ends when the last process of the command ends
        os.dup2(null, stream)
    guard = Guard(child, worker, woken, limit)
    status = guard.watch()
    with contextlib.suppress(OSError):  # the worker has died
        if guard.used:
            os.write(status_fd, f"memory {guard.used}\n".encode())
        os.write(status_fd, f"exit {status}\n".encode())
    return 0


def _start(words: list[str], status_fd: int) -> int:
    """Start the command in a session of its own, and return its process id."""
    guardian = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        ignored = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        for number in (*ignored, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # in case someone kills the guardian
        if os.getppid() != guardian:
            os._exit(127)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(words[0], words)
    except OSError as error:
        os.write(status_fd, f"error {error.strerror}: {words[0]}\n".encode())
    finally:
        os._exit(127)


class Guard:
    """The processes of one command."""

    def __init__(self, child: int, worker: int, woken: int, limit: int) -> None:
        """limit: bytes of memory of all processes, 0 for no limit."""
        self.child, self.worker, self.woken, self.limit = child, worker, woken, limit
        self.used = 0  # bytes, when this was more than the limit
        self.status: int | None = None
        self.kill_at: float | None = None  # after SIGTERM, by time.monotonic()
        self.suspended = False
        self.line = b""

    def watch(self) -> int:
        """Wait until the command has ended and none of its processes is left; return its exit status."""
        while not self._is_over():
            wait = POLL_S if self.kill_at is None else min(POLL_S, max(0.0, self.kill_at - time.monotonic()))
            ready, _, _ = select.select([0, self.woken], [], [], wait)
            if self.woken in ready:
                os.read(self.woken, 4096)
            if 0 in ready and not self._obey():
                break
            self._reap()
            self._follow_worker()
            if self.limit and (used := sum(map(_memory, descendants()))) > self.limit:
                self.used = used
                break
        self.kill()
        return -signal.SIGKILL if self.status is None else self.status

    def _is_over(self) -> bool:
        """Return whether the rest may be killed: the command has ended, and nothing may still save its state."""
        if self.kill_at is None:
            return self.status is not None
        return time.monotonic() >= self.kill_at or (self.status is not None and not descendants())

    def _obey(self) -> bool:
        """Read what the worker writes; return False if everything must be killed now."""
        data = os.read(0, 4096)
        self.line += data
        *lines, self.line = self.line.split(b"\n")
        for line in lines:
            if line.startswith(b"term"):
                self.kill_at = time.monotonic() + float(line.split()[1])
                self._signal_group(signal.SIGTERM)
                self._signal_group(signal.SIGCONT)
        return bool(data) and b"kill" not in lines

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.child:
                    self.status = os.waitstatus_to_exitcode(status)

    def _follow_worker(self) -> None:
        """Suspend the command while the worker is suspended, as by Ctrl-Z in the terminal of the launcher."""
        suspended = _state(self.worker) == "T"
        if suspended != self.suspended:
            self.suspended = suspended
            number = signal.SIGSTOP if suspended else signal.SIGCONT
            for pid in descendants() or [self.child]:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(OSError):
            if self.status is None:  # otherwise its number may be that of another process
                os.killpg(self.child, number)

    def kill(self) -> None:
        """Kill all processes of the command and wait until they are gone."""
        deadline = time.monotonic() + GIVE_UP_S
        self._signal_group(signal.SIGKILL)
        self._reap()
        while (pids := descendants()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
            self._reap()
        if self.status is None and sys.platform != "linux":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.child, 0)


def descendants() -> list[int]:
    """Return the processes that descend from this one; on systems without /proc, none."""
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit() and (fields := _stat(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    found, queue = [], [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _memory(pid: int) -> int:
    """Return the bytes of memory of a process, of pages that it shares only its part; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith(b"Pss:")), 0)
    except (OSError, ValueError):
        return 0


def _state(pid: int) -> str:
    """Return the state of a process, such as R, S or T, "" if it is gone."""
    return next(iter(_stat(pid)), "")


def _stat(pid: int) -> list[str]:
    """Return state, parent and further fields of a process, [] if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (OSError, ValueError):
        return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())

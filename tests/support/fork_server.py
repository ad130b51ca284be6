"""Start the modules of MODULES as forks of a process that has imported PyTorch, Optuna and our modules already.

Most tests start the command line, and a new interpreter spends one to three seconds of CPU time on imports. The fork
server imports everything once. Each command is a process of its own, with its own arguments, environment, folder,
signals and exit status. Three things differ from a new interpreter: the parent process is the server,
/proc/PID/cmdline is the server's, and no module is imported anew. A test to which this matters uses the fixture
`new_interpreters`. The processes of pytest-xdist are forks too. `pytest --exhaustive` starts new interpreters only.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

MODULES = ("hpo", "model.memory.dry_run")  # what `python -m` runs as a fork
TEST_PROCESS = ("-u", "-c", "import sys;exec(eval(sys.stdin.readline()))")  # how pytest-xdist starts its processes
SERVER = "TESTS_FORK_SERVER"  # environment variable: path of the server's socket
LIBRARIES = (
    *("alembic.command", "alembic.migration", "numpy", "optuna.storages._rdb.models", "pandas", "psycopg"),
    *("sqlalchemy.dialects.sqlite", "torch", "torch._dynamo"),
)
START_S = 120.0  # seconds that the imports may take on a busy machine


def read_by_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that an interpreter reads when it starts. A fork cannot read them again."""
    prefixes = ("PYTHON", "LC_", "LANG")
    return {name: v for name, v in environment.items() if name.startswith(prefixes) and name != "PYTHONPATH"}


AT_START = read_by_interpreter(os.environ)
_Popen = subprocess.Popen


class Popen(_Popen[Any]):
    """subprocess.Popen, except that the fork server starts `python -m` with a module of MODULES."""

    def __init__(self, args: Any, *more: Any, start_new_session: bool = False, **options: Any) -> None:
        self._connection: socket.socket | None = None
        self._new_session = start_new_session
        super().__init__(args, *more, start_new_session=start_new_session, **options)

    def _execute_child(self, args: Any, *options: Any) -> None:
        _, preexec_fn, _, _, cwd, env, _, _, _, *pipes = options[:15]
        environment = dict(os.environ if env is None else env)
        words = [] if isinstance(args, str) else [os.fspath(arg) for arg in args]
        ours = (words[:2] == [sys.executable, "-m"] and words[2] in MODULES) or words == [sys.executable, *TEST_PROCESS]
        if preexec_fn or not ours or not environment.get(SERVER) or read_by_interpreter(environment) != AT_START:
            super()._execute_child(args, *options)  # type: ignore[misc]
            return
        request = {
            "argv": words,
            "cwd": os.path.abspath(cwd or "."),
            "env": environment,
            "affinity": sorted(os.sched_getaffinity(0)),
            "new_session": self._new_session,
        }
        stdin, _, _, stdout, _, stderr = pipes
        files = [own if own != -1 else inherited for inherited, own in enumerate((stdin, stdout, stderr))]
        self._connection = connect(environment[SERVER])
        socket.send_fds(self._connection, [b"\n"], files)
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(read_line(self._connection))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._connection is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc, no-any-return]
        if not select.select([self._connection], [], [], 0 if wait_flags & os.WNOHANG else None)[0]:
            return 0, 0
        status = int(read_line(self._connection))
        self._connection.close()
        return self.pid, status

    def _internal_poll(self, *options: Any, **more: Any) -> int | None:
        if self._connection is None:
            return super()._internal_poll(*options, **more)  # type: ignore[misc, no-any-return]
        lock = self._waitpid_lock  # type: ignore[attr-defined]
        if self.returncode is None and lock.acquire(False):
            try:
                if self.returncode is None:
                    self._handle_exit(*self._try_wait(os.WNOHANG))
            finally:
                lock.release()
        return self.returncode

    def _handle_exit(self, pid: int, status: int) -> None:
        if pid:
            self._handle_exitstatus(status)  # type: ignore[attr-defined]


def use_fork_server() -> None:
    """Let `subprocess.Popen` of this process use the fork server that the environment names, if it names one."""
    subprocess.Popen = Popen  # type: ignore[misc]


def connect(path: str) -> socket.socket:
    """Connect to the server; wait for it while it imports the libraries."""
    deadline = time.monotonic() + START_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return connection


def read_line(connection: socket.socket) -> bytes:
    """Return the next line without its end."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = connection.recv(1)
        if not part:
            raise EOFError("the fork server has ended")
        line += part
    return bytes(line[:-1])


class ForkServer:
    """A running server. The processes that this process starts find it in the environment, until `close`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hpo-tests-")
        os.environ[SERVER] = f"{self._folder.name}/socket"
        command = [sys.executable, "-I", __file__, os.environ[SERVER]]  # -I: no folder of ours in sys.path
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # read when torch is imported
        # To keep freed memory saves the page faults of using it again, a quarter of the system time of tests.
        memory = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**30))
        variables = os.environ | threads | memory
        self._process = _Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def close(self) -> None:
        del os.environ[SERVER]
        self._process.communicate()  # closes its standard input
        self._folder.cleanup()


def own_modules() -> Iterator[str]:
    """Yield the modules of hpo and model, except those that run a command or need a package that may be missing."""
    for package in ("hpo", "model"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not any(part in module.name for part in ("__main__", ".ray_", ".integrations.", ".trackers.to_")):
                yield module.name


def serve(path: str) -> dict[str, Any]:
    """Fork for each request until standard input ends; return the request in each fork."""
    for name in (*LIBRARIES, *own_modules()):
        importlib.import_module(name)
    sys.modules["sqlalchemy.orm"].configure_mappers()
    build_command_line()
    runpy.run_path(str(Path(__file__).with_name("tables.py")))["copy_tables"]()
    gc.collect()
    gc.freeze()  # the forks share the memory of these objects until they write to it
    selector = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    Path(f"{path}.new").rename(path)  # only now can others connect
    selector.register(listener.detach(), selectors.EVENT_READ, "request")
    selector.register(0, selectors.EVENT_READ, "end")
    while True:
        for key, _ in selector.select():
            if key.data == "end":
                sys.exit()
            if key.data != "request":
                selector.unregister(key.fd)
                os.close(key.fd)
                report_exit(*key.data)
                continue
            connection, files, request = receive(key.fd)
            pid = os.fork() if request else None
            if pid == 0:
                for number, file in enumerate(files):
                    os.dup2(file, number)
                close_all(selector)
            for file in files:
                os.close(file)
            if pid:
                answer(connection, pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
                continue
            connection.close()
            if pid == 0:
                return request


def receive(listener: int) -> tuple[socket.socket, list[int], dict[str, Any]]:
    """Accept a connection; return it, standard files and the request, which is empty if its sender was killed."""
    with socket.socket(fileno=os.dup(listener)) as accepting:
        connection, _ = accepting.accept()
    files: list[int] = []
    try:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        return connection, files, json.loads(read_line(connection))
    except (EOFError, ConnectionResetError):
        return connection, files, {}


def answer(connection: socket.socket, number: int) -> None:
    """Send a number to whoever started a process, unless it was killed since."""
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(f"{number}\n".encode())


def build_command_line() -> None:
    """Build the command line of hpo once for all forks. Typer builds every command whenever one of them runs."""
    typer_main = sys.modules["typer.main"]
    build = functools.cache(typer_main.get_command)
    typer_main.get_command = build  # type: ignore[attr-defined]
    build(sys.modules["hpo.cli.main"].app)


def close_all(selector: selectors.BaseSelector) -> None:
    """Close what belongs to the server in a fork of it."""
    for key in list(selector.get_map().values()):
        if isinstance(key.data, tuple):
            key.data[1].close()
        if key.fd != 0:  # standard input of the fork by now
            os.close(key.fd)
    selector.close()


def report_exit(pid: int, connection: socket.socket) -> None:
    """Send the exit status of a process to whoever started it, unless that process has ended."""
    _, status = os.waitpid(pid, 0)
    answer(connection, status)
    connection.close()


def run(argv: list[str], cwd: str, env: dict[str, str], affinity: list[int], new_session: bool) -> None:
    """Run a module, or a process of pytest-xdist, in this process, a fork of the server."""
    if new_session:
        os.setsid()
    os.sched_setaffinity(0, affinity)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["torch"].set_num_threads(int(env.get("OMP_NUM_THREADS") or len(affinity)))
    sys.modules["numpy"].random.seed()
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    sys.orig_argv, sys.argv = argv, argv[2:]
    sys.path[:0] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.modules.pop("sitecustomize", None)
    with suppress(ImportError):
        importlib.import_module("sitecustomize")
    if tuple(argv[1:]) == TEST_PROCESS:
        exec(argv[3], {"__name__": "__main__"})
        return
    Path("/proc/self/comm").write_text(" ".join(argv[2:4])[:15])
    use_fork_server()
    sys.modules.pop(argv[2] if argv[2] != "hpo" else "", None)  # others may have imported it
    runpy.run_module(argv[2], run_name="__main__", alter_sys=True)


def leave(status: Any) -> NoReturn:
    """End this process as an interpreter does, but without freeing the memory of each module."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:
        traceback.print_exc()
        status = 120  # that of an interpreter that cannot write its output
    os._exit(status)


def main() -> NoReturn:
    request = serve(sys.argv[1])
    status: Any = 0
    try:
        run(**request)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    leave(status)


if __name__ == "__main__":
    main()

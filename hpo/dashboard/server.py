"""The Optuna Dashboard over a study's storage; beyond this machine only behind a password, and only to look."""

import contextlib
import os
import signal
import socketserver
import sys
import wsgiref.simple_server
from collections.abc import Callable, Iterable
from pathlib import Path
from socket import AF_INET6
from typing import Any

import optuna_dashboard
import sqlalchemy as sa
from bottle import HTTPError  # type: ignore[import-untyped]
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage

from hpo.console import say
from hpo.dashboard.access import AccessControl, Environ, Login, Refusal, StartResponse, WsgiApp, is_loopback
from hpo.errors import Problem, StorageError, WorkFailed
from hpo.optuna_internals import TRIALS, cached_storage
from hpo.runs.run_dir import artifact_folder
from hpo.storage.store import Store, open_dashboard, open_store

PASSWORD = "HPO_DASHBOARD_PASSWORD"


class ThreadingServer(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    """Answers each request in a thread of its own, so that a large study does not hold up the others."""

    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        socketserver.TCPServer.server_bind(self)  # not the parent's, which asks a name server for this host
        self.server_port = self.socket.getsockname()[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # the visitor has gone
            super().handle_error(request, client_address)


class IPv6Server(ThreadingServer):
    """The same for an IPv6 address."""

    address_family = AF_INET6


class QuietRequestHandler(wsgiref.simple_server.WSGIRequestHandler):
    """One request, of which no line is printed."""

    timeout = 60  # seconds that a visitor may say nothing, so that idle connections do not pile up

    def log_message(self, format: str, *args: Any) -> None: ...


def serve(storage: str, host: str, port: int, edit: bool | None = None, out: Path | None = None) -> None:
    """Serve until interrupted.

    edit: whether the pages may change studies; None: on this machine only. out: the folder of the runs, where the
    files are that `hpo report` attached.

    Raises:
        Problem: an address beyond this machine without a password.
        WorkFailed: the address cannot be listened on.
    """
    local = is_loopback(host)
    password = os.fsencode(os.environ.get(PASSWORD, ""))
    if not local and not password.strip():
        raise Problem(
            f"--host: an address beyond this machine needs a password, since anyone who reaches it could read and "
            f"delete studies; set {PASSWORD}, or use 127.0.0.1, got {host or repr(host)}"
        )
    with contextlib.ExitStack() as stack:
        look = stack.enter_context(open_dashboard(storage))
        change = stack.enter_context(open_store(storage)) if (local if edit is None else edit) else None
        app = build_app(look, change, Login(password) if password.strip() else None, local, artifact_store(out))
        server = stack.enter_context(_listening(host, port, app))
        signal.signal(signal.SIGTERM, _end)
        what = "" if change else ", to look only"
        say(f"dashboard: http://{_shown(host)}:{server.server_port}/dashboard{what}  (Ctrl-C ends it)")
        server.serve_forever()


def artifact_store(out: Path | None) -> FileSystemArtifactStore | None:
    """Return those files as the pages serve them, None where there are none."""
    return FileSystemArtifactStore(artifact_folder(out)) if out is not None and artifact_folder(out).is_dir() else None


def build_app(
    look: Store, change: Store | None, login: Login | None, local: bool, files: FileSystemArtifactStore | None = None
) -> AccessControl:
    """Return Optuna's pages behind the guard; what only looks is read from `look`, which takes no write lock."""
    pages = _Pages(look, files)
    edit = _edits(optuna_dashboard.wsgi(retrying_storage(change), artifact_store=files), pages) if change else None
    return AccessControl(pages, edit, login, local, lambda study_id: _n_trials(look, study_id))


class _Pages:
    """Optuna's pages over a storage, with what Optuna remembers of it."""

    def __init__(self, store: Store, files: FileSystemArtifactStore | None) -> None:
        self._store, self._files = store, files
        self.forget()

    def forget(self) -> None:
        """Begin without memory: SQLite gives the number of a deleted study to the next one."""
        self._app: WsgiApp = optuna_dashboard.wsgi(retrying_storage(self._store), artifact_store=self._files)

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        return self._app(environ, start)


def _edits(app: WsgiApp, pages: _Pages) -> WsgiApp:
    def edit(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        deletes = environ["REQUEST_METHOD"] == "DELETE" or environ["PATH_INFO"].rstrip("/").endswith("/rename")
        try:
            return app(environ, start)
        finally:
            if deletes:
                pages.forget()

    return edit


def retrying_storage(store: Store) -> BaseStorage:
    """Return Optuna's storage object, every call retried; one that fails all the same is answered 503, not a traceback.

    Finished trials are kept in memory, without which 5,000 trials take 7 s each time.
    """
    cached = cached_storage(store.rdb)
    for name, method in vars(BaseStorage).items():
        if callable(method) and not name.startswith("_"):
            setattr(cached, name, _answering(store, getattr(cached, name)))
    return cached


def _answering(store: Store, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return store.retry(method, *args, **kwargs)
        except StorageError as error:
            raise HTTPError(503, str(error)) from error

    return call


def _n_trials(store: Store, study_id: int) -> int:
    statement = sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)

    def count() -> int:
        with store.engine.begin() as connection:
            return int(connection.execute(statement).scalar_one())

    try:
        return int(store.retry(count))
    except StorageError as error:
        raise Refusal("503 Service Unavailable", str(error)) from error


def _listening(host: str, port: int, app: WsgiApp) -> ThreadingServer:
    kind = IPv6Server if ":" in host else ThreadingServer
    try:
        return wsgiref.simple_server.make_server(host, port, app, kind, QuietRequestHandler)
    except OSError as error:
        raise WorkFailed(f"--port: cannot listen on {_shown(host)}:{port}: {error.strerror or error}") from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _end(*_: object) -> None:
    """End at SIGTERM, also as the first process of a container, which the signal alone would not end."""
    sys.exit(128 + signal.SIGTERM)

"""Serve the Optuna Dashboard of a storage. An address that other machines can reach requires a password."""

import contextlib
import os
import re
import signal
import sys
import wsgiref.simple_server
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna_dashboard
import sqlalchemy as sa
from bottle import HTTPError  # type: ignore[import-untyped]
from optuna.storages import BaseStorage

from hpo.console import say
from hpo.dashboard.access import AccessControl, is_loopback
from hpo.dashboard.http_server import IPv6Server, QuietRequestHandler, ThreadingServer
from hpo.dashboard.login import Login, PasswordLogin, TokenLogin
from hpo.dashboard.wsgi import Environ, Refusal, StartResponse, WsgiApp
from hpo.errors import Problem, StorageError, WorkFailed
from hpo.optuna_internals.objects import cached_storage
from hpo.optuna_internals.tables import TRIALS
from hpo.runs.artifacts import ArtifactFolder
from hpo.runs.run_dir import artifact_folder
from hpo.storage.engine import is_read_only
from hpo.storage.schema import SLOT, database_clock
from hpo.storage.store import Store, open_dashboard, open_store

PASSWORD = "HPO_DASHBOARD_PASSWORD"

_RENAME = re.compile(r"/api/studies/(\d+)/rename")


def serve(
    storage: str, host: str, port: int, edit: bool | None = None, out: Path | None = None, use_token: bool = True
) -> None:
    """Serve the dashboard until the process is interrupted.

    edit: whether users of the dashboard may change studies; None: only if the dashboard is local.
    out: folder of the runs, which contains the files that `hpo report` attached.
    use_token: whether a dashboard without a password requires the token of the link that it prints.

    Raises:
        Problem: other machines can reach the address, and no password is set.
        WorkFailed: the address cannot be used.
    """
    local = is_loopback(host)
    password = os.fsencode(os.environ.get(PASSWORD, ""))
    if not local and not password.strip():
        raise Problem(
            f"--host: requires a password if other machines can reach the address, because they could read and "
            f"delete studies, got {host or repr(host)}; set {PASSWORD}, or use 127.0.0.1"
        )
    with contextlib.ExitStack() as stack:
        read_store = stack.enter_context(open_dashboard(storage))
        can_edit = local and not is_read_only(storage) if edit is None else edit
        edit_store = stack.enter_context(open_store(storage)) if can_edit else None
        login = PasswordLogin(password) if password.strip() else TokenLogin() if use_token else None
        app = build_app(read_store, edit_store, login, local, artifact_store(out))
        server = stack.enter_context(_create_server(host, port, app))
        signal.signal(signal.SIGTERM, _exit_on_sigterm)
        mode = "" if edit_store else ", read-only"
        page = f"dashboard?token={login.token}" if isinstance(login, TokenLogin) else "dashboard"
        say(f"dashboard: http://{_url_host(host)}:{server.server_port}/{page}{mode}  (press Ctrl-C to stop)")
        server.serve_forever()


def artifact_store(out: Path | None) -> ArtifactFolder | None:
    """Return the store of attached files, None if there are none."""
    return ArtifactFolder(artifact_folder(out)) if out is not None and artifact_folder(out).is_dir() else None


def build_app(
    read_store: Store,
    edit_store: Store | None,
    login: Login | None,
    local: bool,
    files: ArtifactFolder | None = None,
) -> AccessControl:
    """Return Optuna's application behind the access control.

    read_store: a store that takes no write lock. edit_store: a store that can write; None: read-only dashboard.
    """
    pages = _Pages(read_store, files)
    edit = _edit_app(edit_store, pages, files) if edit_store else None
    return AccessControl(pages, edit, login, local, lambda study_id: _n_trials(read_store, study_id))


class _Pages:
    """Optuna's application of a storage. Optuna caches the trials that it has read."""

    def __init__(self, store: Store, files: ArtifactFolder | None) -> None:
        self._store, self._files = store, files
        self.drop_cache()

    def drop_cache(self) -> None:
        """Drop the cache, because SQLite gives the id of a deleted study to the next study."""
        self._app: WsgiApp = optuna_dashboard.wsgi(retrying_storage(self._store), artifact_store=self._files)

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        return self._app(environ, start)


def _edit_app(store: Store, pages: _Pages, files: ArtifactFolder | None) -> WsgiApp:
    """Return Optuna's application for requests that change a study.

    The application drops the cache of the pages after a study was deleted or renamed. It refuses to rename a study
    whose trials are running, because Optuna then copies the trials into a new study, without their latest values.
    """
    app = optuna_dashboard.wsgi(retrying_storage(store), artifact_store=files)

    def edit(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"].encode("latin1").decode("utf8", "ignore")  # as Bottle decodes it
        renames = _RENAME.fullmatch(path.rstrip("/"))
        if renames and (n := _n_leased(store, int(renames[1]))):
            reason = f"the study has {n} running trial{'s' if n > 1 else ''}; stop it with `hpo stop`, then rename it"
            raise Refusal("409 Conflict", reason)
        try:
            return app(environ, start)
        finally:
            if renames or environ["REQUEST_METHOD"] == "DELETE":
                pages.drop_cache()

    return edit


def retrying_storage(store: Store) -> BaseStorage:
    """Return Optuna's storage with retries. A call that still fails is answered with status 503.

    Optuna caches finished trials; without the cache, reading 5,000 trials takes 7 s each time.
    """
    cached = cached_storage(store.rdb)
    for name, method in vars(BaseStorage).items():
        if callable(method) and not name.startswith("_"):
            setattr(cached, name, _retrying(store, getattr(cached, name)))
    return cached


def _retrying(store: Store, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return store.retry(method, *args, **kwargs)
        except StorageError as error:
            raise HTTPError(503, str(error)) from error

    return call


def _n_trials(store: Store, study_id: int) -> int:
    return _count(store, sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id))


def _n_leased(store: Store, study_id: int) -> int:
    """Return the number of trials that workers hold at this moment."""
    leased = sa.and_(SLOT.c.state == "leased", SLOT.c.lease_until >= database_clock(store.engine))
    return _count(store, sa.select(sa.func.count()).select_from(SLOT).where(SLOT.c.study_id == study_id, leased))


def _count(store: Store, statement: sa.Select[Any]) -> int:
    def count() -> int:
        with store.engine.begin() as connection:
            return int(connection.execute(statement).scalar_one())

    try:
        return int(store.retry(count))
    except StorageError as error:
        raise Refusal("503 Service Unavailable", str(error)) from error


def _create_server(host: str, port: int, app: WsgiApp) -> ThreadingServer:
    server_class = IPv6Server if ":" in host else ThreadingServer
    try:
        return wsgiref.simple_server.make_server(host, port, app, server_class, QuietRequestHandler)
    except OSError as error:
        raise WorkFailed(
            f"--port: cannot listen on {_url_host(host)}:{port}: {error.strerror or error}; choose another port"
        ) from None


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _exit_on_sigterm(*_: object) -> None:
    """Exit. The first process of a container ignores SIGTERM if it installs no handler."""
    sys.exit(128 + signal.SIGTERM)

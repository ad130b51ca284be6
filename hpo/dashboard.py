"""The Optuna Dashboard over a study's storage; beyond this machine only behind a password."""

import base64
import binascii
import hmac
import os
import socketserver
import wsgiref.simple_server
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

import optuna_dashboard

from hpo.output import say
from hpo.problems import Problem, WorkFailed
from hpo.storage import connect

PASSWORD = "HPO_DASHBOARD_PASSWORD"
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Login:
    """Asks every request for the password (HTTP basic, any user name); only looking is allowed."""

    def __init__(self, app: App, password: str) -> None:
        self.app, self.password = app, password.encode()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if not hmac.compare_digest(_password(environ.get("HTTP_AUTHORIZATION", "")), self.password):
            return _refuse(start, "401 Unauthorized", ("WWW-Authenticate", 'Basic realm="hpo", charset="UTF-8"'))
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refuse(start, "403 Forbidden")
        return self.app(environ, start)


def _password(header: str) -> bytes:
    scheme, _, text = header.partition(" ")
    try:
        return base64.b64decode(text, validate=True).partition(b":")[2] if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return b""


def _refuse(start: Callable[..., Any], status: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    body = status.encode()
    start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers])
    return [body]


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


def serve(storage: str, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        Problem: an address beyond this machine without a password.
        WorkFailed: the address cannot be listened on.
    """
    password = os.environ.get(PASSWORD, "")
    if not is_loopback(host) and not password:
        raise Problem(
            f"--host: an address beyond this machine needs a password, since anyone who reaches it could delete "
            f"studies; set {PASSWORD}, or use 127.0.0.1, got {host}"
        )
    with connect(storage) as store:
        app = optuna_dashboard.wsgi(store.optuna)
        guarded: App = Login(app, password) if password else app
        try:
            server = wsgiref.simple_server.make_server(host, port, guarded, _Server, _Quiet)
        except OSError as error:
            raise WorkFailed(f"--port: cannot listen on {host}:{port}: {error.strerror or error}") from None
        say(f"dashboard: http://{host}:{server.server_port}/dashboard  (Ctrl-C ends it)")
        with server:
            server.serve_forever()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

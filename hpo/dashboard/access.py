"""Access control of the dashboard: a WSGI application that wraps Optuna's.

The application refuses a request

* to a host name that is not this machine's, if the dashboard is local (421),
* from a page of another site (403),
* without the password or the token (401), or while many wrong passwords are answered (429),
* whose body is too long (413),
* that changes a study, if the dashboard is read-only (403),
* whose answer needs gigabytes of memory (413).
"""

import re
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from hpo.dashboard.login import Login
from hpo.dashboard.wsgi import Environ, Headers, Refusal, StartResponse, WsgiApp

READ_METHODS = ("GET", "HEAD")
MAX_BODY, MAX_UPLOAD = 2**20, 2**25  # bytes of a request, and of one that uploads a file as base64
DISCARD_S = 10.0  # seconds for which a body that is too long is read, because browsers send it before they read answers
MAX_TRIALS_IN_HEAVY_PLOTS = (
    500  # trials above which Optuna's contour and rank plots are refused: 5,000 took 23 s and 2.4 GB
)

_HEAVY = re.compile(r"/api/studies/(-?\d+)/plot/(contour|rank)")
_HARDENED = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),  # a browser may store pages, but must validate them before it shows them
]
# Artifacts are files of runs and uploads of visitors, so they may contain scripts. The browser must not run these.
_SANDBOX = ("Content-Security-Policy", "sandbox; default-src 'none'; img-src 'self'; style-src 'unsafe-inline'")


class AccessControl:
    """Passes requests that read to one application, and requests that change a study to another."""

    def __init__(
        self,
        read_app: WsgiApp,
        edit_app: WsgiApp | None,
        login: Login | None,
        local: bool,
        count_trials: Callable[[int], int],
    ) -> None:
        """Wrap two applications.

        read_app: answers GET and HEAD. edit_app: answers other methods; None: the dashboard is read-only.
        local: whether only this machine can connect. A request to another host name is then an attack by a page in a
            visitor's browser (DNS rebinding).
        count_trials: returns the number of trials of a study, by its id.
        """
        self._read_app, self._edit_app, self._login, self._local = read_app, edit_app, login, local
        self._count_trials = count_trials
        self._upload = threading.Lock()  # Optuna needs five times the memory of an upload

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        # Bottle decodes paths in this way, so both see the same path.
        path = environ["PATH_INFO"].encode("latin1").decode("utf8", "ignore").rstrip("/")
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # Optuna's dashboard requires this key
        added: Headers = []  # by the login
        start = _hardened(start, path, added)
        try:
            app = self._application(environ, path, added)
            if not _is_upload(path):
                return app(environ, start)
            with self._upload:
                return app(environ, start)
        except Refusal as refusal:
            return refusal.answer(start)

    def _application(self, environ: Environ, path: str, added: Headers) -> WsgiApp:
        if self._local and not is_loopback(_host(environ.get("HTTP_HOST", ""))):
            reason = "this dashboard is local; open it at 127.0.0.1 or localhost"
            raise Refusal("421 Misdirected Request", reason)
        _check_site(environ)
        if self._login:
            added += self._login.check(environ)
        _check_body(environ, MAX_UPLOAD if _is_upload(path) and self._edit_app else MAX_BODY)
        if environ["REQUEST_METHOD"] in READ_METHODS:
            self._check_size(path)
            return self._read_app
        if not self._edit_app:
            raise Refusal("403 Forbidden", "this dashboard is read-only; start it with --allow-edit to change studies")
        return self._edit_app

    def _check_size(self, path: str) -> None:
        heavy = _HEAVY.fullmatch(path)
        if heavy and (n_trials := self._count_trials(int(heavy[1]))) > MAX_TRIALS_IN_HEAVY_PLOTS:
            limit = f"the {heavy[2]} plot is limited to {MAX_TRIALS_IN_HEAVY_PLOTS} trials"
            reason = f"{limit}, this study has {n_trials}"
            raise Refusal("413 Content Too Large", reason)


def _is_upload(path: str) -> bool:
    return path.startswith("/api/artifacts/")


def _check_body(environ: Environ, limit: int) -> None:
    """Check the length of the body before any of it is stored.

    Raises:
        Refusal: the body is too long, or its length is not given.
    """
    length = environ.get("CONTENT_LENGTH") or "0"
    if "HTTP_TRANSFER_ENCODING" in environ or not (length.isascii() and length.isdigit()):
        raise Refusal("411 Length Required", "a request must have a Content-Length")
    if len(length) <= 15 and int(length) <= limit:
        return
    deadline, left = time.monotonic() + DISCARD_S, int(length[:15])
    while left > 0 and time.monotonic() < deadline and (data := environ["wsgi.input"].read(min(left, 2**16))):
        left -= len(data)
    raise Refusal("413 Content Too Large", f"a request must have at most {limit / 2**20:.0f} MiB here")


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_site(environ: Environ) -> None:
    """Refuse requests from pages of other sites, except links to a page of the dashboard.

    Raises:
        Refusal: the request comes from another site.
    """
    fetch = {name: environ.get(f"HTTP_SEC_FETCH_{name}") for name in ("SITE", "MODE", "DEST")}
    reads = environ["REQUEST_METHOD"] in READ_METHODS
    is_link = reads and fetch["MODE"] == "navigate" and fetch["DEST"] == "document"
    is_foreign = fetch["SITE"] not in (None, "same-origin", "none") and not is_link
    origin = environ.get("HTTP_ORIGIN")  # browsers send it with every request that may change something
    if is_foreign or (origin is not None and _netloc(origin) != environ.get("HTTP_HOST", "").lower()):
        raise Refusal("403 Forbidden", "requests from pages of other sites are refused")


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _hardened(start: StartResponse, path: str, added: Headers) -> StartResponse:
    """Return `start` with security headers and `added`, without the header that lets other sites read the answer."""

    def hardened(status: str, headers: Headers, *info: Any) -> Any:
        own = [(key, value) for key, value in headers if key.lower() != "access-control-allow-origin"]
        sandbox = [_SANDBOX] if path.startswith("/artifacts") else []
        return start(status, own + _HARDENED + sandbox + added, *info)

    return hardened

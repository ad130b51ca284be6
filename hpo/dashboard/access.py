"""Access control of the dashboard: a WSGI application that wraps Optuna's.

The application refuses a request

* to a host name that is not this machine's, if the dashboard is local (421),
* from a page of another site (403),
* without the password (401), or after too many wrong passwords (429),
* that changes a study, if the dashboard is read-only (403),
* whose answer needs gigabytes of memory (413).
"""

import base64
import binascii
import collections
import hmac
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

READ_METHODS = ("GET", "HEAD")
MAX_WRONG_PASSWORDS = 10  # wrong passwords that are accepted from one address per minute
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


class Refusal(Exception):
    """A request that is refused: HTTP status, reason, additional headers."""

    def __init__(self, status: str, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers

    def answer(self, start: StartResponse) -> Iterable[bytes]:
        """Send the reason in the form of Optuna's own errors, which its pages show."""
        body = json.dumps({"reason": self.reason}).encode()
        lines = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start(self.status, [*lines, *self.headers])
        return [body]


class Login:
    """Checks the password (HTTP basic authentication, any user name) and limits wrong passwords per address."""

    def __init__(self, password: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._password, self._clock = password, clock
        self._wrong: dict[str, collections.deque[float]] = {}  # address -> times of its last wrong passwords
        self._lock = threading.Lock()

    def check(self, environ: Environ) -> None:
        """Check the password of a request.

        Raises:
            Refusal: the password is missing or wrong, or the address has sent too many wrong ones.
        """
        password = _password(environ.get("HTTP_AUTHORIZATION", ""))
        with self._lock:  # otherwise simultaneous guesses could all be compared before one is counted
            if wait := self._wait(environ["REMOTE_ADDR"]):
                reason = f"too many wrong passwords from this address; try again in {wait} s"
                raise Refusal("429 Too Many Requests", reason, ("Retry-After", str(wait)))
            if hmac.compare_digest(password or b"", self._password):
                return
            if password is not None:  # the first request of a browser has no password
                self._record(environ["REMOTE_ADDR"])
        challenge = ("WWW-Authenticate", 'Basic realm="hpo", charset="UTF-8"')
        raise Refusal("401 Unauthorized", "a password is required; the user name is not checked", challenge)

    def _wait(self, address: str) -> int:
        """Return the seconds until this address may try again."""
        times = self._wrong.get(address)
        if not times or len(times) < MAX_WRONG_PASSWORDS:
            return 0
        return max(0, math.ceil(times[0] + 60 - self._clock()))

    def _record(self, address: str) -> None:
        now = self._clock()
        self._wrong = {a: times for a, times in self._wrong.items() if times[-1] > now - 60}  # drops old entries
        self._wrong.setdefault(address, collections.deque(maxlen=MAX_WRONG_PASSWORDS)).append(now)


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

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        # Bottle decodes paths in this way, so both see the same path.
        path = environ["PATH_INFO"].encode("latin1").decode("utf8", "ignore").rstrip("/")
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # Optuna's dashboard requires this key
        start = _hardened(start, path)
        try:
            return self._application(environ, path)(environ, start)
        except Refusal as refusal:
            return refusal.answer(start)

    def _application(self, environ: Environ, path: str) -> WsgiApp:
        if self._local and not is_loopback(_host(environ.get("HTTP_HOST", ""))):
            reason = "this dashboard is local; open it at 127.0.0.1 or localhost"
            raise Refusal("421 Misdirected Request", reason)
        _check_site(environ)
        if self._login:
            self._login.check(environ)
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


def _password(header: str) -> bytes | None:
    """Return the password of an Authorization header, None without one, b"" if it cannot be decoded."""
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(text.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _hardened(start: StartResponse, path: str) -> StartResponse:
    """Return `start` with security headers added, and without the header that lets other sites read the answer."""
    added = [*_HARDENED, _SANDBOX] if path.startswith("/artifacts") else _HARDENED

    def hardened(status: str, headers: list[tuple[str, str]], *info: Any) -> Any:
        own = [(key, value) for key, value in headers if key.lower() != "access-control-allow-origin"]
        return start(status, own + added, *info)

    return hardened

"""Who may reach the dashboard's pages, and what they may do there. A WSGI application around others.

A request is refused for the name it was sent to (421), for the site it comes from (403), without the password (401),
after too many wrong ones (429), when it would change something that may only be looked at (403), and when its answer
would take gigabytes (413).
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
MAX_WRONG_PASSWORDS = 10  # wrong passwords that one address may give within a minute
MAX_TRIALS_IN_HEAVY_PLOTS = (
    500  # trials above which Optuna's contour and rank plots are refused: 5,000 took 23 s and 2.4 GB
)

_HEAVY = re.compile(r"/api/studies/(-?\d+)/plot/(contour|rank)")
_HARDENED = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),  # a browser keeps pages, but shows none without asking again
]
# An artifact is whatever a run or a visitor left behind: shown, but never a page of this site that runs scripts.
_SANDBOX = ("Content-Security-Policy", "sandbox; default-src 'none'; img-src 'self'; style-src 'unsafe-inline'")


class Refusal(Exception):
    """A request that is answered here: status, reason, further headers."""

    def __init__(self, status: str, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers

    def answer(self, start: StartResponse) -> Iterable[bytes]:
        """Answer as Optuna's own refusals do: the pages show the reason."""
        body = json.dumps({"reason": self.reason}).encode()
        lines = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start(self.status, [*lines, *self.headers])
        return [body]


class Login:
    """Asks for the password (HTTP basic, any user name), and stops listening to an address that guesses."""

    def __init__(self, password: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._password, self._clock = password, clock
        self._wrong: dict[str, collections.deque[float]] = {}  # address: when it gave its last wrong passwords
        self._lock = threading.Lock()

    def check(self, environ: Environ) -> None:
        """Raise a Refusal unless the password is there."""
        given = _password(environ.get("HTTP_AUTHORIZATION", ""))
        with self._lock:  # else guesses that arrive together would all be heard before one is counted
            if wait := self._wait(environ["REMOTE_ADDR"]):
                reason = f"too many wrong passwords from this address; try again in {wait} s"
                raise Refusal("429 Too Many Requests", reason, ("Retry-After", str(wait)))
            if hmac.compare_digest(given or b"", self._password):
                return
            if given is not None:  # a browser's first request comes without any
                self._note(environ["REMOTE_ADDR"])
        challenge = ("WWW-Authenticate", 'Basic realm="hpo", charset="UTF-8"')
        raise Refusal("401 Unauthorized", "the password is needed, with any user name", challenge)

    def _wait(self, address: str) -> int:
        """Return the seconds until this address is heard again."""
        times = self._wrong.get(address)
        if not times or len(times) < MAX_WRONG_PASSWORDS:
            return 0
        return max(0, math.ceil(times[0] + 60 - self._clock()))

    def _note(self, address: str) -> None:
        now = self._clock()
        self._wrong = {a: times for a, times in self._wrong.items() if times[-1] > now - 60}  # stays small
        self._wrong.setdefault(address, collections.deque(maxlen=MAX_WRONG_PASSWORDS)).append(now)


class AccessControl:
    """Lets through to `look` what only looks and to `edit` what changes something; without `edit` nothing may.

    local: only this machine can connect, so that a request to another name is a site's trick on a visitor's browser.
    count: number of trials of a study.
    """

    def __init__(
        self, look: WsgiApp, edit: WsgiApp | None, login: Login | None, local: bool, count: Callable[[int], int]
    ):
        self._look, self._edit, self._login, self._local, self._count = look, edit, login, local, count

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        # Bottle reads a path this way, so that what is refused here is what it would serve.
        path = environ["PATH_INFO"].encode("latin1").decode("utf8", "ignore").rstrip("/")
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # Optuna's dashboard fails without
        start = _hardened(start, path)
        try:
            return self._chosen(environ, path)(environ, start)
        except Refusal as refusal:
            return refusal.answer(start)

    def _chosen(self, environ: Environ, path: str) -> WsgiApp:
        if self._local and not is_loopback(_host(environ.get("HTTP_HOST", ""))):
            reason = "the dashboard of this machine is reached by 127.0.0.1 or localhost only"
            raise Refusal("421 Misdirected Request", reason)
        _check_site(environ)
        if self._login:
            self._login.check(environ)
        if environ["REQUEST_METHOD"] in READ_METHODS:
            self._check_size(path)
            return self._look
        if not self._edit:
            raise Refusal(
                "403 Forbidden", "this dashboard only shows; hpo dashboard --allow-edit lets it change studies"
            )
        return self._edit

    def _check_size(self, path: str) -> None:
        heavy = _HEAVY.fullmatch(path)
        if heavy and (n_trials := self._count(int(heavy[1]))) > MAX_TRIALS_IN_HEAVY_PLOTS:
            reason = f"the {heavy[2]} plot is drawn for at most {MAX_TRIALS_IN_HEAVY_PLOTS} trials, this study has {n_trials}"
            raise Refusal("413 Content Too Large", reason)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_site(environ: Environ) -> None:
    """Refuse what another site's page asks for; following its link to a page here is fine."""
    asked = {name: environ.get(f"HTTP_SEC_FETCH_{name}") for name in ("SITE", "MODE", "DEST")}
    looking = environ["REQUEST_METHOD"] in READ_METHODS
    link = looking and asked["MODE"] == "navigate" and asked["DEST"] == "document"
    foreign = asked["SITE"] not in (None, "same-origin", "none") and not link
    origin = environ.get("HTTP_ORIGIN")  # browsers send it with whatever may change something
    if foreign or (origin is not None and _netloc(origin) != environ.get("HTTP_HOST", "").lower()):
        raise Refusal("403 Forbidden", "requests from the pages of another site are refused")


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
    """Return the password of an Authorization header, None where there is none."""
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(text.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _hardened(start: StartResponse, path: str) -> StartResponse:
    """Return `start` with headers against sniffing, framing and leaking, and without leave for other sites to read."""
    further = [*_HARDENED, _SANDBOX] if path.startswith("/artifacts") else _HARDENED

    def hardened(status: str, headers: list[tuple[str, str]], *info: Any) -> Any:
        kept = [(key, value) for key, value in headers if key.lower() != "access-control-allow-origin"]
        return start(status, kept + further, *info)

    return hardened

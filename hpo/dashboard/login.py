"""Who may use the dashboard: those who know its password, or the token of the link that it prints."""

import base64
import binascii
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qsl, quote, urlencode

from hpo.dashboard.wsgi import Environ, Headers, Refusal

WRONG_PASSWORDS = 10  # wrong passwords that are answered without delay
WRONG_S = 1.0  # seconds between two further answers to wrong passwords, from all addresses together
MAX_WAITING = 100  # wrong passwords whose answers are delayed at the same time


class Session:
    """A cookie that a browser receives after its login. Its secret is random for each start of the dashboard."""

    def __init__(self) -> None:
        self._secret = secrets.token_urlsafe(32)

    def is_open(self, environ: Environ) -> bool:
        """Return whether a request has the cookie."""
        pairs = (pair.strip().partition("=") for pair in environ.get("HTTP_COOKIE", "").split(";"))
        return any(name == _cookie_name(environ) and _equal(value, self._secret) for name, _, value in pairs)

    def headers(self, environ: Environ) -> Headers:
        """Return the header that sets the cookie."""
        cookie = f"{_cookie_name(environ)}={self._secret}; HttpOnly; SameSite=Strict; Path=/"
        return [("Set-Cookie", cookie)]


class PasswordLogin:
    """Checks the password (HTTP basic authentication, any user name).

    The right password always passes, so that a page with an old password locks nobody out: behind a proxy, all users
    have one address. To bound the number of guesses from all addresses together, answers to wrong passwords are
    delayed. While `MAX_WAITING` of them wait, a password is not compared; browsers that have logged in pass by their
    cookie.
    """

    def __init__(
        self,
        password: bytes,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._password, self._clock, self._sleep = password, clock, sleep
        self._session = Session()
        self._answer_at = clock() - WRONG_PASSWORDS * WRONG_S  # when the last wrong password is answered
        self._n_waiting = 0
        self._lock = threading.Lock()

    def check(self, environ: Environ) -> Headers:
        """Check the password of a request and return headers of the answer.

        Raises:
            Refusal: the password is missing or wrong, or there are too many wrong passwords at this moment.
        """
        if self._session.is_open(environ):
            return []
        password = _password(environ.get("HTTP_AUTHORIZATION", ""))
        if password is not None:  # the first request of a browser has no password
            delay = self._compare(password)
            if delay is None:
                return self._session.headers(environ)
            try:
                self._sleep(delay)
            finally:
                with self._lock:
                    self._n_waiting -= 1
        challenge = ("WWW-Authenticate", 'Basic realm="hpo", charset="UTF-8"')
        raise Refusal("401 Unauthorized", "a password is required; the user name is not checked", challenge)

    def _compare(self, password: bytes) -> float | None:
        """Return the seconds until a wrong password is answered, None for the right one.

        Raises:
            Refusal: too many answers are waiting.
        """
        with self._lock:  # otherwise simultaneous guesses could all be compared before one is counted
            if self._n_waiting >= MAX_WAITING:
                reason = "too many wrong passwords at this moment; try again in a minute"
                raise Refusal("429 Too Many Requests", reason, ("Retry-After", "60"))
            if hmac.compare_digest(password, self._password):
                return None
            now = self._clock()
            self._answer_at = max(self._answer_at, now - WRONG_PASSWORDS * WRONG_S) + WRONG_S
            self._n_waiting += 1
            return max(0.0, self._answer_at - now)


class TokenLogin:
    """Checks the token of the printed link. A browser that opens the link receives a cookie and the page without the
    token in its address, as in Jupyter. A program sends the header `Authorization: Bearer TOKEN`.

    The token protects the studies of a user from the other users of the machine.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self._session = Session()

    def check(self, environ: Environ) -> Headers:
        """Check the cookie or the token of a request and return headers of the answer.

        Raises:
            Refusal: the request has neither, or is redirected to the same page without the token.
        """
        scheme, _, text = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if self._session.is_open(environ) or (scheme.lower() == "bearer" and _equal(text.strip(), self.token)):
            return []
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        if not any(key == "token" and _equal(value, self.token) for key, value in query):
            reason = "a token is required; open the link that `hpo dashboard` printed when it started"
            raise Refusal("401 Unauthorized", reason)
        rest = urlencode([(key, value) for key, value in query if key != "token"])
        path = "/" + quote(environ["PATH_INFO"].encode("latin1").lstrip(b"/"))
        location = ("Location", f"{path}?{rest}" if rest else path)
        raise Refusal("303 See Other", "the token is valid", location, *self._session.headers(environ))


Login = PasswordLogin | TokenLogin


def _cookie_name(environ: Environ) -> str:
    """Return a name with the port, because browsers send cookies to all ports of an address."""
    return f"hpo-{environ.get('SERVER_PORT', '')}"


def _equal(one: str, other: str) -> bool:
    """Compare in a time that does not depend on the first difference."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def _password(header: str) -> bytes | None:
    """Return the password of an Authorization header, None without one, b"" if it cannot be decoded."""
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(text.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""

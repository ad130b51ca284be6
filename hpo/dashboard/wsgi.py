"""Types of WSGI applications, and requests that are refused."""

import json
from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]
Headers = list[tuple[str, str]]


class Refusal(Exception):
    """A request that is refused or redirected: HTTP status, reason, additional headers."""

    def __init__(self, status: str, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers

    def answer(self, start: StartResponse) -> Iterable[bytes]:
        """Send the reason in the form of Optuna's own errors, which its pages show."""
        body = json.dumps({"reason": self.reason}).encode()
        lines = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start(self.status, [*lines, *self.headers])
        return [body]

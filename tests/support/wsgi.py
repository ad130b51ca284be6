"""Requests to a WSGI application without a server."""

import io
import json
from typing import Any
from wsgiref.util import setup_testing_defaults

from hpo.dashboard.wsgi import WsgiApp


class Answer:
    """The answer of an application to one request."""

    def __init__(self, app: WsgiApp, path: str, method: str = "GET", send: Any = None, **environ: str) -> None:
        self.headers: dict[str, str] = {}
        path, _, query = path.partition("?")
        body = b"" if send is None else json.dumps(send).encode()
        environment: dict[str, Any] = {"REMOTE_ADDR": "10.0.0.1", "REQUEST_METHOD": method, "PATH_INFO": path}
        environment |= {"QUERY_STRING": query, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        environment |= {"CONTENT_TYPE": "application/json", **environ}
        setup_testing_defaults(environment)
        chunks = app(environment, self._start)
        self.body = b"".join(chunks)
        if hasattr(chunks, "close"):
            chunks.close()

    def _start(self, status: str, headers: list[tuple[str, str]], *_: object) -> None:
        self.status = int(status[:3])
        assert len({key.lower() for key, _ in headers}) == len(headers), headers
        self.headers = {key.lower(): value for key, value in headers}

    @property
    def reason(self) -> str:
        """Return the reason of a refusal, which the pages show."""
        return str(json.loads(self.body)["reason"])

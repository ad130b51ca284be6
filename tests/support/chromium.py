"""Control a headless Chromium through its DevTools protocol over a pair of pipes, with the standard library only."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MISSING = "no chromium on this machine; the Debian package is chromium"
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1300,2400"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"]
# Host names of other machines must not be resolved.
QUIET += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]

# Chromium reads from descriptor 3 and writes to 4. F_DUPFD moves both first, because one may already be 3 or 4.
_EXEC = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page of a browser. Records requested URLs, HTTP status codes by URL, and errors.

    password: entered when a page requests one; None cancels the request.
    """

    def __init__(self, folder: Path, password: str | None = None) -> None:
        assert CHROMIUM
        self.requests: list[str] = []
        self.statuses: dict[str, int] = {}
        self.errors: list[str] = []
        self._password, self._last_id, self._buffer = password, 0, b""
        self._answered: set[str] = set()
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        flags = [*QUIET, f"--user-data-dir={folder}/browser", "--remote-debugging-pipe", "about:blank"]
        command = [sys.executable, "-c", _EXEC, str(read), str(write), CHROMIUM, *flags]
        self._process = subprocess.Popen(
            command, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Fetch.enable", handleAuthRequests=True)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self._send("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded or refused."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete'")

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 90) -> Any:
        """Wait until an expression in the page is true; return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < deadline, f"{script}: still {value}\n{self.errors}\n{self.evaluate(_TEXT)}"
            self._take(time.monotonic() + 0.2)
        return value

    def screenshot(self, path: Path) -> None:
        """Save a screenshot of the page as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol and return its result."""
        number = self._send(method, **params)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            message = self._take(deadline)
            if message and message.get("id") == number:
                assert "error" not in message, (method, message)
                return message["result"]
        raise TimeoutError(method)

    def _send(self, method: str, **params: Any) -> int:
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if session := getattr(self, "_session", None):
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._last_id

    def _take(self, deadline: float) -> dict[str, Any] | None:
        """Return the next message, None if there is none before the deadline."""
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(self._from, 1 << 20)
            assert data, "the browser has exited"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._record(message.get("method"), message.get("params", {}))
        return message

    def _record(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Fetch.requestPaused":
            self._send("Fetch.continueRequest", requestId=params["requestId"])
        elif event == "Fetch.authRequired":
            self._log_in(params["requestId"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Network.responseReceived":
            self.statuses[params["response"]["url"]] = params["response"]["status"]
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"].get("exception", params)))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(str([argument.get("value") for argument in params["args"]]))

    def _log_in(self, request: str) -> None:
        """Enter the password once; cancel if the page requests it again."""
        answer: dict[str, str] = {"response": "CancelAuth"}
        if self._password is not None and request not in self._answered:
            answer = {"response": "ProvideCredentials", "username": "me", "password": self._password}
        self._answered.add(request)
        self._send("Fetch.continueWithAuth", requestId=request, authChallengeResponse=answer)


_TEXT = "document.body ? document.body.innerText.slice(0, 2000) : ''"

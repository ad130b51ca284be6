"""A running dashboard process, and requests to it."""

import base64
import contextlib
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator


@contextlib.contextmanager
def dashboard(url: str, *arguments: str, password: str = "", token: bool = False, files: int = 0) -> Iterator[str]:
    """Run `hpo dashboard`; yield its address.

    token: require a token, and yield the printed link, which contains it. files: limit of open files, as `ulimit -n`.
    """
    command = [sys.executable, "-m", "hpo", "dashboard", "--storage", url, "--port", "0", *arguments]
    command += [] if token else ["--no-token"]
    command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command] if files else command
    env = {**os.environ, "HPO_DASHBOARD_PASSWORD": password}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            address = re.search(r"http://\S+" if token else r"http://[^/]+", line)
            assert address, line
            yield address[0].replace("0.0.0.0", "127.0.0.1")
        finally:
            process.terminate()
            rest = process.communicate()[1]
    assert process.returncode == 143
    assert "Traceback" not in rest, rest


def basic(password: str) -> str:
    """Return the Authorization header that a browser sends for a password."""
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


def get_status(address: str, method: str = "GET", password: str = "") -> int:
    """Return the status of the answer to a request."""
    request = urllib.request.Request(address, method=method)
    if password:
        request.add_header("Authorization", basic(password))
    try:
        with urllib.request.urlopen(request, timeout=50) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code

"""The fork server of the tests: a process that is killed while it asks for another ends nothing else."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.support.fork_server import SERVER, connect

VERSION = [sys.executable, "-m", "hpo", "--version"]


@pytest.mark.skipif(SERVER not in os.environ, reason="no fork server runs")
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_server_outlives_who_leaves_before_the_answer(share: float) -> None:
    request = {
        "argv": VERSION,
        "cwd": "/",
        "env": dict(os.environ),
        "affinity": sorted(os.sched_getaffinity(0)),
        "new_session": False,
    }
    sent = json.dumps(request).encode() + b"\n"
    with connect(os.environ[SERVER]) as connection, open(os.devnull, "r+b") as nothing:
        if share:
            socket.send_fds(connection, [b"\n"], [nothing.fileno()] * 3)
            connection.sendall(sent[: round(share * len(sent))])
    assert subprocess.run(VERSION, capture_output=True, text=True, timeout=60, check=True).stdout.startswith("hpo ")

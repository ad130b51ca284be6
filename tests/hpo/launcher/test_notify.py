"""`--notify URL` posts what happens to a study to a webhook, and never stops the study."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hpo.launcher.notify import Notifier
from tests.support.command import hpo
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


class Webhook(ThreadingHTTPServer):
    """A server that keeps the messages; the first `refuse` requests get the status 500."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: list[dict[str, Any]] = []
        self.n_requests, self.refuse, self.pause = 0, 0, 0.0
        self.url = f"http://127.0.0.1:{self.server_port}/secret"


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.n_requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.pause)
        refused = self.server.n_requests <= self.server.refuse
        if not refused:
            self.server.messages.append(body)
        self.send_response(500 if refused else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_launch_posts_a_reached_target_and_its_end_and_repeats_a_refused_message(here: Path, webhook: Webhook) -> None:
    webhook.refuse = 1
    planted(here, budget={"trials": 3}, targets={"half": 1.6})
    done = hpo("launch", "--study", "planted.yaml", "--notify", webhook.url, cwd=here)
    assert [message["event"] for message in webhook.messages] == ["target", "done"]
    target, end = webhook.messages
    assert (target["study"], target["target"], target["trial"]) == ("planted", "half", 0)
    assert target["value"] <= 1.6
    assert (end["status"], end["trials"]["complete"], end["best"]["number"]) == (0, 3, end["best"]["number"])
    assert f"trial {end['best']['number']}" in end["text"]
    assert webhook.n_requests == 3, "one retry"
    assert "secret" not in done.stdout + done.stderr
    again = hpo("launch", "--study", "planted.yaml", cwd=here, HPO_NOTIFY=webhook.url)
    assert [message["event"] for message in webhook.messages[2:]] == ["done"], "no target is reported twice"
    assert "secret" not in again.stdout + again.stderr


def test_launch_posts_that_it_failed(here: Path, webhook: Webhook) -> None:
    path = planted(here, budget={"trials": 1}, base={})
    module = here / "curves.py"
    module.write_text(module.read_text() + "\nimport os\nif os.environ.get('HPO_EVENTS'):\n    os._exit(7)\n")
    hpo("launch", "--study", str(path), "--notify", webhook.url, cwd=here, status=1)
    assert [message["event"] for message in webhook.messages] == ["failed"]
    assert "worker 1 ended with status 7" in webhook.messages[0]["text"]
    assert webhook.messages[0]["status"] == 1


def test_server_that_is_away_or_refuses_costs_a_note_and_no_result(here: Path, webhook: Webhook) -> None:
    webhook.refuse = 9
    planted(here, budget={"trials": 1})
    done = hpo("launch", "--study", "planted.yaml", "--notify", webhook.url, cwd=here)
    assert webhook.n_requests == 2, "one retry"
    assert "note: --notify: 127.0.0.1 did not take the message done: status 500" in done.stderr


def test_message_is_queued_at_once(webhook: Webhook) -> None:
    webhook.pause = 0.5
    notifier = Notifier(webhook.url)
    started_at = time.monotonic()
    for _ in range(3):
        notifier.post("done", "study", "text", {"value": float("nan")})
    assert time.monotonic() - started_at < 0.2
    notifier.close()
    assert [message["value"] for message in webhook.messages] == [None] * 3


@pytest.mark.parametrize("url", ["ftp://x", "hook", "http://", "http://[::1", "http://x:99999/"])
def test_wrong_url_is_refused_before_the_study_starts(here: Path, url: str) -> None:
    planted(here)
    done = hpo("launch", "--study", "planted.yaml", "--notify", url, cwd=here, status=2)
    assert f"--notify: must be a URL that starts with http:// or https://, got {url!r}" in done.stderr
    assert not (here / "runs").exists()

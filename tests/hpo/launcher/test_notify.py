"""`--notify URL` posts what happens to a study to a webhook, and never stops the study."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.snapshot import Snapshot
from hpo.errors import Problem
from hpo.launcher.notify import Notifier, notifications, notify_url
from hpo.queue.inspect import SlotEvent
from tests.support.command import hpo
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


class Webhook(ThreadingHTTPServer):
    """A server that keeps the messages; the first `refuse` requests get the status 500."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: list[dict[str, Any]] = []
        self.n_requests, self.refuse = 0, 0
        self.answers = threading.Event()  # requests wait until it is set
        self.answers.set()
        self.url = f"http://127.0.0.1:{self.server_port}/secret"


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.n_requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.answers.wait(60)
        refused = self.server.n_requests <= self.server.refuse
        if not refused:
            self.server.messages.append(body)
        self.send_response(500 if refused else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def snapshot(**values: Any) -> Snapshot:
    """Return a study of one trial that no worker has started."""
    given: dict[str, Any] = {"spec": {"name": "planted", "objective": "value", "rungs": 4}, "budget": {"trials": 1}}
    given |= {"name": "planted", "anchors": {}, "data_hash": None, "elapsed": 1.0, "trials": []}
    return Snapshot(**{**given, "slots": {"search": 1}, "leased": frozenset(), **values})


def quarantine(owner: str, seconds_ago: float) -> SlotEvent:
    return SlotEvent(seconds_ago, "quarantined", None, None, owner, "the disk failed: no space")


def released(seconds_ago: float) -> SlotEvent:
    return SlotEvent(seconds_ago, "released", 3, 1, "a", None)


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
    webhook.answers.clear()
    notifier = Notifier(webhook.url)
    for _ in range(3):
        notifier.post("done", "study", "text", {"value": float("nan")})
    assert webhook.messages == []
    webhook.answers.set()
    notifier.close()
    assert [message["value"] for message in webhook.messages] == [None] * 3


def test_every_new_quarantine_is_posted_once_although_a_snapshot_has_only_the_latest_events(webhook: Webhook) -> None:
    notifier = Notifier(webhook.url)
    notifier.look(snapshot(events=[quarantine("a", 9.0), quarantine("b", 10.0)]))  # before the launch
    notifier.look(snapshot(events=[quarantine("c", 1.0), released(2.0), quarantine("a", 19.0)]))  # of b no longer
    notifier.look(snapshot(events=[quarantine("c", 1.5), released(2.5), quarantine("a", 19.5)]))
    notifier.look(snapshot(events=[quarantine("d", 1.0), quarantine("c", 2.0), quarantine("c", 11.5)]))
    notifier.close()
    assert [(message["event"], message["worker"]) for message in webhook.messages] == [
        ("quarantined", "c"),
        ("quarantined", "c"),
        ("quarantined", "d"),
    ]
    assert webhook.messages[0]["text"] == "planted: quarantined: the disk failed: no space"
    assert webhook.messages[0]["trials"]["running"] == 0


def test_launch_that_ends_by_an_unexpected_error_posts_that_it_failed(webhook: Webhook) -> None:
    with pytest.raises(ZeroDivisionError), notifications(webhook.url, "planted"):
        _ = 1 / 0
    (message,) = webhook.messages
    assert (message["event"], message["status"]) == ("failed", 1)
    assert message["text"] == "planted: failed: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("status", [0, 143])
def test_launch_that_ends_before_its_study_posts_that_it_is_stopped(status: int, webhook: Webhook) -> None:
    notifier = Notifier(webhook.url)
    notifier.end(snapshot(state="stopped"), status)
    notifier.close()
    assert [(message["event"], message["status"]) for message in webhook.messages] == [("stopped", status)]


def test_note_about_a_url_that_cannot_be_used_does_not_show_it(capfd: pytest.CaptureFixture[str]) -> None:
    notifier = Notifier("http://127.0.0.1/a secret")
    notifier.post("done", "study", "text", {})
    notifier.close()
    assert "127.0.0.1 did not take the message done: InvalidURL" in (shown := capfd.readouterr().err)
    assert "secret" not in shown


WRONG = ["ftp://x/secret", "secret", "http://", "http:///secret", "http://[::1/secret", "http://x:99999/secret"]


@pytest.mark.parametrize("url", [*WRONG, "http://x:0/secret"])
@pytest.mark.parametrize("name", ["--notify", "HPO_NOTIFY"])
def test_wrong_url_is_refused_without_showing_it(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_NOTIFY", url)
    with pytest.raises(Problem) as refused:
        notify_url(url if name == "--notify" else "")
    assert str(refused.value) == f"{name}: must be a URL that starts with http:// or https://, and that has a host"


@pytest.mark.parametrize("url", ["", "http://x", "https://x:8443/secret"])
def test_url_of_http_is_valid(url: str) -> None:
    assert notify_url(url) == url


def test_wrong_url_is_refused_before_the_study_starts(here: Path) -> None:
    planted(here)
    done = hpo("launch", "--study", "planted.yaml", "--notify", "ftp://x/secret", cwd=here, status=2)
    assert "--notify: must be a URL that starts with http:// or https://" in done.stderr
    assert "secret" not in done.stderr
    assert not (here / "runs").exists()

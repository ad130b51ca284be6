"""`--notify URL`: post what happens to a study to a webhook, beside the work and never able to stop it."""

import json
import os
import queue
import socket
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from hpo.analysis.progress import has_ended, trial_counts
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.summary import best_summary, result_record
from hpo.console import json_value, say
from hpo.errors import Problem, StorageError
from hpo.queue.inspect import SlotEvent

NOTIFY = "HPO_NOTIFY"  # environment variable that holds the URL, which may be a secret
TIMEOUT_S = 10.0  # of one attempt
RETRY_S = 2.0  # pause before the second attempt, which is the last
CLOSE_S = 5.0  # how long a launch that has ended waits for the last message


def notify_url(option: str) -> str:
    """Return the URL of the option or of the environment, "" for none.

    Raises:
        Problem: it is not a URL of HTTP.
    """
    url = option or os.environ.get(NOTIFY, "")
    if url:
        name = "--notify" if option else NOTIFY
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            # The value may be a secret, so it is not shown.
            raise Problem(f"{name}: must be a URL that starts with http:// or https://, and that has a host")
    return url


@contextmanager
def notifications(url: str, study: str) -> Iterator["Notifier"]:
    """Provide a notifier for one launch, and report the error that ends the launch."""
    notifier = Notifier(url)
    try:
        yield notifier
    except (Problem, StorageError) as problem:
        notifier.post("failed", study, str(problem), {"status": getattr(problem, "status", 4)})
        raise
    except Exception as error:
        notifier.post("failed", study, f"{type(error).__name__}: {error}", {"status": 1})
        raise
    finally:
        notifier.close()


class Notifier:
    """Sends messages from a thread of its own. Without a URL it does nothing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._reached: set[str] | None = None  # None before the first snapshot
        self._quarantines: Counter[SlotEvent] = Counter()  # those of the last snapshot
        if url:
            self._thread.start()

    def look(self, snapshot: Snapshot) -> None:
        """Report what is new in a snapshot: targets that were reached, and quarantined workers."""
        # A snapshot has the latest events only, so the number of quarantines does not show whether one is new.
        quarantines = Counter(e._replace(seconds_ago=0.0) for e in snapshot.events if e.event_type == "quarantined")
        if self._reached is not None:
            for name in snapshot.reached.keys() - self._reached:
                first = snapshot.reached[name]
                text = f"trial {first.trial} reached the target {name} at rung {first.rung}: {first.value:.6g}"
                self.send("target", snapshot, text, target=name, trial=first.trial, value=first.value)
            for event in reversed(list((quarantines - self._quarantines).elements())):  # the oldest first
                self.send("quarantined", snapshot, event.text or "a worker is quarantined", worker=event.owner)
        self._reached, self._quarantines = set(snapshot.reached), quarantines

    def end(self, snapshot: Snapshot, status: int) -> None:
        """Report how a launch has ended, by its exit status, and what is new since the last snapshot.

        The status is 0 too if `hpo stop` or `hpo pause` has ended the workers of a study that has not ended.
        """
        self.look(snapshot)
        stopped = status > 128 or (status == 0 and not has_ended(snapshot))
        event = "stopped" if stopped else "failed" if status else "done"
        self.send(event, snapshot, best_summary(snapshot) or "no trial is complete", status=status)

    def send(self, event: str, snapshot: Snapshot, text: str, **fields: Any) -> None:
        """Queue a message about a snapshot and return at once."""
        best = snapshot.best()
        fields |= {"trials": trial_counts(snapshot), "objective": snapshot.objective}
        fields |= {"best": result_record(best) if best else None}
        self.post(event, snapshot.name, text, fields)

    def post(self, event: str, study: str, text: str, fields: Mapping[str, Any]) -> None:
        """Queue a message and return at once."""
        message = {"event": event, "study": study, "text": f"{study}: {event}: {text}", **fields}  # chats show the text
        time = datetime.now(UTC).isoformat(timespec="seconds")
        if self.url:
            self._messages.put(json_value({**message, "host": socket.gethostname(), "time": time}))

    def close(self) -> None:
        """Wait a few seconds until all messages are sent."""
        if self.url:
            self._messages.put(None)
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                say(f"note: --notify: {self._host()} does not answer; the last message may be lost")

    def _send_all(self) -> None:
        pause = threading.Event()
        while (message := self._messages.get()) is not None:
            failure = self._post(message)
            if failure is not None:
                pause.wait(RETRY_S)
                failure = self._post(message)
            if failure is not None:
                say(f"note: --notify: {self._host()} did not take the message {message['event']}: {failure}")

    def _post(self, message: Mapping[str, Any]) -> str | None:
        """Post a message; return why it failed, None if the server took it."""
        headers = {"Content-Type": "application/json", "User-Agent": "hpo"}
        try:
            request = urllib.request.Request(self.url, json.dumps(message).encode(), headers, method="POST")
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return None
        except urllib.error.HTTPError as error:
            return f"status {error.code}"
        except Exception as error:  # of any kind: a message must not end a launch
            # Errors of other types, such as http.client.InvalidURL, may contain a part of the URL.
            return str(getattr(error, "reason", error)) if isinstance(error, OSError) else type(error).__name__

    def _host(self) -> str:
        """Return the host of the URL. The rest of a URL may be a secret."""
        return urlsplit(self.url).hostname or "the server"

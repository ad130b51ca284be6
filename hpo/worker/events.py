"""Events that a worker reports, and how they are printed as lines of text."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from hpo.console import fixed, show

# An event is a JSON object. The key "event" holds its type: "start", "rung", one of ENDS, ...
# Launchers and workers may run different versions, so event types and keys keep their form.
Event = dict[str, Any]
EventListener = Callable[[Event], None]

# Types of events that end a trial.
ENDS = ("complete", "pruned", "diverged", "invalid", "error", "oom", "timeout", "killed", "lost", "disk")

# Environment variable: if its value is "json", a worker prints its events as lines of JSON.
EVENTS = "HPO_EVENTS"

# Environment variable: seconds that a rung has to end after SIGUSR1, if they are more than after other signals.
WARNING_GRACE_S = "HPO_WARNING_GRACE_S"


def event_printer(rungs: int, prefix: str = "") -> EventListener:
    """Return a function that prints a worker's events as lines of text."""

    def print_event(event: Event) -> None:
        if text := event_line(event, rungs):
            show(f"{prefix}{text}")

    return print_event


def event_writer() -> EventListener:
    """Return a function that writes a worker's events as JSON to the pipe of its launcher, standard output.

    From then on standard output is standard error, the worker's log. What training code prints is neither lost nor
    taken for an event.
    """
    pipe = os.dup(1)  # which child processes do not inherit
    sys.stdout.flush()
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def write_event(event: Event) -> None:
        rest = json.dumps(event).encode() + b"\n"
        while rest:
            rest = rest[os.write(pipe, rest) :]

    return write_event


def event_line(event: Event, rungs: int, digits: int = 4) -> str:
    """Return an event as one line of text, or "" for an event that is not shown.

    rungs: number of rungs of a trial. digits: decimals of the loss.
    """
    trial, event_type = event.get("trial"), event["event"]
    match event_type:
        case "start":
            return f"trial {trial}: started{' (baseline)' if event['kind'] == 'baseline' else ''}" + _attempt(event)
        case "rung":
            rate = event.get("tokens_per_second")
            speed = f", {rate:,.0f} tokens/s" if rate else ""
            return f"trial {trial}: rung {event['rung']}/{rungs}, {_loss(event, digits)}{speed}"
        case "paused":
            return f"trial {trial}: {event['text']}, {_loss(event, digits)}"
        case "requeued":
            return f"trial {trial}: requeued after rung {event['rung']} ({event['text']})"
        case "taken":
            return f"trial {trial}: its lease expired; another worker resumes the trial"
        case "joined":
            return ""
        case "exit":
            return f"ended with status {event['status']}" if event["status"] else ""
    if event_type in ENDS:
        result = f": {event['error']}" if event.get("error") else f", {_loss(event, digits)}"
        return f"trial {trial}: {event_type} at rung {event['rung']}/{rungs}{result}"
    return str(event.get("text", event_type))


def _attempt(event: Event) -> str:
    return f", attempt {event['attempt']}" if event.get("attempt", 1) > 1 else ""


def _loss(event: Event, digits: int) -> str:
    return "no finite loss" if event.get("value") is None else fixed(event["value"], digits)

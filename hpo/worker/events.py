"""Events that a worker reports, and how they read as a line."""

import json
import os
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]


ENDS = ("complete", "pruned", "diverged", "invalid", "error", "oom", "timeout", "killed", "lost")


EVENTS = "HPO_EVENTS"  # environment: a worker that finds "json" here prints its events as lines of JSON


def event_printer(rungs: int, prefix: str = "") -> Callable[[dict[str, Any]], None]:
    """Return what prints a worker's events: as JSON to a launcher, as lines to a person."""

    def tell(event: dict[str, Any]) -> None:
        if os.environ.get(EVENTS) == "json":
            print(json.dumps(event), flush=True)
        elif text := event_line(event, rungs):
            print(f"{prefix}{text}", flush=True)

    return tell


def event_line(event: Event, rungs: int, digits: int = 4) -> str:
    """Return an event as one line of text, "" for one that needs none."""
    trial, kind = event.get("trial"), event["event"]
    if kind == "start":
        return f"trial {trial}: started{' (baseline)' if event['kind'] == 'baseline' else ''}" + _again(event)
    if kind == "rung":
        rate = event.get("tokens_per_second")
        return f"trial {trial}: rung {event['rung']}/{rungs}, {_loss(event, digits)}" + (
            f", {rate:,.0f} tokens/s" if rate else ""
        )
    if kind in ENDS:
        told = f": {event['error']}" if event.get("error") else f", {_loss(event, digits)}"
        return f"trial {trial}: {kind} at rung {event['rung']}/{rungs}{told}"
    if kind == "requeued":
        return f"trial {trial}: given back after rung {event['rung']} ({event['text']})"
    if kind == "taken":
        return f"trial {trial}: its lease ran out; another worker goes on with it"
    if kind == "joined":
        return ""
    if kind == "exit":
        return f"ended with status {event['status']}" if event["status"] else ""
    return str(event.get("text", kind))


def _again(event: Event) -> str:
    return f", attempt {event['attempt']}" if event.get("attempt", 1) > 1 else ""


def _loss(event: dict[str, Any], digits: int) -> str:
    return "no finite loss" if event.get("value") is None else f"{event['value']:.{digits}f}"

"""The last events of a study, from what its storage holds."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from hpo.analysis.snapshot import Snapshot, trial_status, trial_value
from hpo.analysis.summary import objective_text
from hpo.storage.trials import Trial


class TimedEvent(NamedTuple):
    """An event as a line of text; at: in local time."""

    at: datetime
    text: str


def last_events(snapshot: Snapshot, n: int) -> list[TimedEvent]:
    """Return the last events of a study, the latest last: trials that started or ended, and unusual events."""
    starts = sorted((t for t in snapshot.own if t.started), key=lambda t: t.started or datetime.min)[-n:]
    ends = sorted((t for t in snapshot.own if t.ended), key=lambda t: t.ended or datetime.min)[-n:]
    events = [TimedEvent(t.started, f"trial {t.number}: started{_kind(snapshot, t)}") for t in starts if t.started]
    events += [TimedEvent(t.ended, _end_text(snapshot, t)) for t in ends if t.ended]
    return sorted([*events, *_unusual(snapshot, n)])[-n:]


def _kind(snapshot: Snapshot, trial: Trial) -> str:
    return " (baseline)" if snapshot.kind(trial) == "baseline" else ""


def _end_text(snapshot: Snapshot, trial: Trial) -> str:
    value = trial_value(trial)
    result = "no finite loss" if value is None else objective_text(snapshot, value)
    place = f"at rung {trial.last_step or 0}/{snapshot.rungs}"
    return f"trial {trial.number}: {trial_status(snapshot, trial)} {place}, {result}"


def _unusual(snapshot: Snapshot, n: int) -> Sequence[TimedEvent]:
    now = datetime.now()
    numbers = {t.user_attrs.get("slot"): t.number for t in snapshot.own}
    events = []
    for event in snapshot.events[:n]:
        subject = f"trial {numbers[event.slot]}: " if event.slot in numbers else ""
        text = (event.text or "").strip().rpartition("\n")[2]
        line = f"{subject}{event.event_type}" + (f" ({text})" if text else "")
        events.append(TimedEvent(now - timedelta(seconds=event.seconds_ago), line))
    return events

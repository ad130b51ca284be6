"""The status of a study as text: `hpo status`, and how a study shows itself in Python."""

from collections import Counter

from hpo.analysis.front import front_lines
from hpo.analysis.improvements import improvement_lines
from hpo.analysis.looks import look_lines
from hpo.analysis.marks import paused_lines
from hpo.analysis.probes import probe_lines
from hpo.analysis.progress import tokens_text, trial_counts
from hpo.analysis.snapshot import Snapshot, trial_status
from hpo.analysis.summary import best_summary, goal_lines, stalled_lines
from hpo.analysis.warnings import study_warnings
from hpo.console import format_duration
from hpo.errors import error_summary
from hpo.queue.inspect import SlotEvent

FAILURES = ("diverged", "invalid", "oom", "timeout", "lost", "disk", "killed", "error")
NEXT_STEPS = {
    "paused": "; paused: `hpo resume` continues the study",
    "stopped": "; stopped: `hpo launch` continues the study",
}
MAX_EVENTS = 5  # events that `hpo status` shows


def status_text(snapshot: Snapshot) -> str:
    """Return the status of a study as a few lines."""
    n = trial_counts(snapshot)
    total = sum(snapshot.slots.values()) if snapshot.budget.get("trials") else None  # with the added trials
    lines = [
        f"{snapshot.name}: {n['complete'] + n['pruned'] + n['failed']} of {total or 'any number of'} trials ended, "
        f"{'first launched' if snapshot.own else 'created'} {format_duration(snapshot.elapsed)} ago"
        + NEXT_STEPS.get(snapshot.state, ""),
        ", ".join(f"{count} {state}" for state, count in n.items()),
    ]
    interrupted = [t.number for t in snapshot.trials if trial_status(snapshot, t) == "interrupted"]
    if interrupted:
        lines.append(f"interrupted, the next worker resumes them: trials {', '.join(map(str, interrupted))}")
    lines += paused_lines(snapshot)
    lines += stalled_lines(snapshot)
    if copied := len(snapshot.trials) - len(snapshot.own):
        lines.append(f"{copied} more were copied from another study")
    ends = Counter(trial_status(snapshot, t) for t in snapshot.own)
    failures = {end: ends[end] for end in FAILURES if ends[end]}
    if failures:
        lines.append("of these " + ", ".join(f"{count} {end}" for end, count in failures.items()))
    lines += _event_lines(snapshot)
    lines += [text] if (text := tokens_text(snapshot)) else []
    lines += probe_lines(snapshot)
    lines += [best_summary(snapshot) or "no trial is complete yet", *look_lines(snapshot), *goal_lines(snapshot)]
    lines += [*front_lines(snapshot), *improvement_lines(snapshot)]
    lines += [f"note: {note}" for note in study_warnings(snapshot)]
    return "\n".join(lines)


def _event_lines(snapshot: Snapshot) -> list[str]:
    """Return the counts of unusual events, such as lost workers, and one line for each of the latest events."""
    if not snapshot.events:
        return []
    n = Counter(event.event_type for event in snapshot.events)
    title = "events: " + ", ".join(f"{count} {word}" for word, count in n.items()) + "; the latest:"
    latest = snapshot.events[:MAX_EVENTS]
    return [
        title,
        *(f"  {format_duration(e.seconds_ago)} ago: {e.event_type}{_event_details(snapshot, e)}" for e in latest),
    ]


def _event_details(snapshot: Snapshot, event: SlotEvent) -> str:
    """Return trial, attempt and worker of an event in parentheses, and the summary of its text."""
    trials = [t for t in snapshot.trials if event.slot is not None and t.user_attrs.get("slot") == event.slot]
    details = [f"trial {t.number}" for t in trials]
    details += [f"attempt {event.attempt}"] if event.attempt is not None else []
    details += [event.owner.rpartition(":")[0]] if event.owner else []
    text = (event.text or "").strip()
    # The text of a lost worker ends with the last lines of its log.
    text = error_summary(text) if "Traceback" in text else text.rpartition("\n")[2]
    return "".join([f" ({', '.join(details)})" if details else "", f": {text}" if text else ""])

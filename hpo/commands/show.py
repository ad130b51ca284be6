"""What the commands that only look print."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.analysis.noise import rounded, sigmas
from hpo.analysis.snapshot import Snapshot, counts, ended, find, read_snapshot, tokens, value, word
from hpo.analysis.summary import aims, milestones_of, standing, summary
from hpo.analysis.targets import records
from hpo.analysis.warnings import caveats
from hpo.console import Format, clock, record, rows, say
from hpo.queue.inspect import SlotEvent
from hpo.runs.run_dir import read_metrics, trial_folder
from hpo.storage.attributes import ERROR, METRICS
from hpo.storage.retry import OpenStorage
from hpo.storage.trials import Trial, study_ids

SPECIAL = ("diverged", "invalid", "oom", "timeout", "lost", "killed", "error")
REMEDY = {"paused": "; paused: `hpo resume` goes on", "stopped": "; stopped: `hpo launch` goes on"}
LATEST = 5  # events that `hpo status` shows
TWICE = {"val_perplexity"}  # val_loss in other words


def studies(store: OpenStorage) -> list[dict[str, Any]]:
    """Return one record a study."""
    from hpo.errors import Problem

    found: list[dict[str, Any]] = []
    for name in sorted(study_ids(store)):
        try:
            snapshot = read_snapshot(store, name)
        except Problem:
            continue  # another program's study in the same database
        best = snapshot.best()
        found.append(
            {"study": name, **counts(snapshot), snapshot.objective: best and rounded(snapshot.noise, best.values[0])}
        )
    return found


def show_status(store: OpenStorage, name: str | None, format: Format, watch: bool) -> None:
    """Print how far a study is, once or until it ends."""
    while True:
        snapshot = read_snapshot(store, name)
        if format is Format.table:
            print(_told(snapshot), flush=True)
        else:
            record(summary(snapshot), format)
        if not watch or ended(snapshot):
            return
        time.sleep(2)


def _told(snapshot: Snapshot) -> str:
    """Return the status of a study as a few lines."""
    n, spent = counts(snapshot), tokens(snapshot)
    total = sum(snapshot.slots.values()) if snapshot.budget.get("trials") else None  # what was added by hand included
    told = [
        f"{snapshot.name}: {n['complete'] + n['pruned'] + n['failed']} of {total or 'any number of'} trials ended, "
        f"first launched {clock(snapshot.elapsed)} ago" + REMEDY.get(snapshot.state, ""),
        ", ".join(f"{count} {state}" for state, count in n.items()),
    ]
    held = [t.number for t in snapshot.trials if word(snapshot, t) == "interrupted"]
    if held:
        told.append(f"interrupted, to be gone on with by the next worker: trials {', '.join(map(str, held))}")
    if carried := len(snapshot.trials) - len(snapshot.own):
        told.append(f"{carried} more were carried over from another study")
    words = Counter(word(snapshot, t) for t in snapshot.own)
    special = {w: words[w] for w in SPECIAL if words[w]}
    if special:
        told.append("of these " + ", ".join(f"{count} {w}" for w, count in special.items()))
    told += _happened(snapshot)
    if spent["trained"] is not None:
        told.append(f"{spent['trained']:,} tokens trained, {spent['saved_by_pruning']:,} saved by pruning")
    told += [standing(snapshot) or "no trial is complete yet", *aims(snapshot)]
    told += [f"note: {note}" for note in caveats(snapshot)]
    return "\n".join(told)


def _happened(snapshot: Snapshot) -> list[str]:
    """Return what happened out of the ordinary: how often each, and the latest in a line each."""
    if not snapshot.happened:
        return []
    often = Counter(happening.event_type for happening in snapshot.happened)
    told = ["on the way: " + ", ".join(f"{count} {w}" for w, count in often.items()) + "; the latest:"]
    return told + [
        f"  {clock(h.seconds_ago)} ago: {h.event_type}{_where(snapshot, h)}" for h in snapshot.happened[:LATEST]
    ]


def _where(snapshot: Snapshot, happening: SlotEvent) -> str:
    """Return whom something happened to, and what is known of it."""
    who = [
        f"trial {t.number}"
        for t in snapshot.trials
        if happening.slot is not None and t.user_attrs.get("slot") == happening.slot
    ]
    who += [f"attempt {happening.attempt}"] if happening.attempt is not None else []
    who += [happening.owner.rpartition(":")[0]] if happening.owner else []
    said = (happening.text or "").strip().splitlines()
    return "".join([f" ({', '.join(who)})" if who else "", f": {said[-1]}" if said else ""])


def trial(snapshot: Snapshot, number: int) -> dict[str, Any]:
    """Return all that is known of one trial."""
    found = find(snapshot, number)
    error = str(found.user_attrs.get(ERROR, "")).strip()
    return {
        "number": number,
        "state": word(snapshot, found),
        "kind": found.user_attrs.get("kind"),
        **_weighed(snapshot, found),
        "params": dict(found.params),
        "curve": {str(rung): rounded(snapshot.noise, v) for rung, v in sorted(found.intermediate_values.items())},
        **({"milestones": _passed(snapshot, found)} if snapshot.spec.get("milestones") else {}),
        "metrics": _rounded(snapshot, found.user_attrs.get(METRICS, {})),
        "worker": found.user_attrs.get("worker"),
        "attempt": found.user_attrs.get("attempt"),
        **{key: found.user_attrs[key] for key in ("retry_of", "forked_from") if key in found.user_attrs},
        **({"interruptions": told} if (told := _interruptions(snapshot, found)) else {}),
        **({"reason": error.splitlines()[-1]} if error else {}),
    }


def _weighed(snapshot: Snapshot, found: Trial) -> dict[str, Any]:
    """Return a trial's result, against the noise of the baseline where that is known."""
    result, floor = value(found), snapshot.noise
    if floor is None or result is None:
        return {snapshot.objective: result}
    against = {"mean": rounded(floor, floor.mean), "sigma": rounded(floor, floor.sigma), "seeds": floor.n}
    return {snapshot.objective: rounded(floor, result), "sigmas": sigmas(floor, found, result), "baseline": against}


def _passed(snapshot: Snapshot, found: Trial) -> dict[str, dict[str, Any]]:
    """Return what a trial made of the milestones."""
    passed = records(milestones_of(snapshot, found))
    return {share: {key: _said(snapshot, key, v) for key, v in record.items()} for share, record in passed.items()}


def _said(snapshot: Snapshot, key: str, found: Any) -> Any:
    return rounded(snapshot.noise, found) if key in ("value", "by") and found is not None else found


def _rounded(snapshot: Snapshot, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics of which the objective is told with the decimals that the noise leaves."""
    found = metrics.get(snapshot.objective)
    return {**metrics, **({snapshot.objective: rounded(snapshot.noise, found)} if isinstance(found, float) else {})}


def _interruptions(snapshot: Snapshot, found: Trial) -> list[str]:
    """Return how the attempts of a trial ended that did not end it, the first of them first."""
    slot = found.user_attrs.get("slot")
    mine = [
        h
        for h in reversed(snapshot.happened)
        if slot is not None and h.slot == slot and h.event_type != word(snapshot, found)
    ]
    return [f"attempt {h.attempt}: {h.event_type}" for h in mine]


def _readable(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what fits on a line for a person: no group by group, no layer by layer, nothing that was not measured."""
    many = {key for m in metrics for key, value in m.items() if isinstance(value, Mapping | list)}
    if many:
        say(f"{', '.join(sorted(many))}: with --format json or csv")
    told = {key for m in metrics for key, value in m.items() if value is not None} - many - TWICE
    return [{key: value for key, value in m.items() if key in told} for m in metrics]


def show_logs(snapshot: Snapshot, found: Trial, out: Path, format: Format) -> None:
    """Print the metrics file of a trial and what it left on standard error."""
    folder = trial_folder(out, snapshot.name, found.number)
    metrics = list(read_metrics(folder / "metrics.jsonl"))
    if not metrics:
        say(f"no metrics in {folder}; another machine may have them, or --out names another folder than at launch")
        metrics = [{"rung": rung, snapshot.objective: v} for rung, v in sorted(found.intermediate_values.items())]
    metrics = [_rounded(snapshot, m) for m in metrics]
    rows(_readable(metrics) if format is Format.table else metrics, format)
    stderr = folder / "stderr.log"
    if stderr.is_file():
        say(stderr.read_text("utf-8", "replace").rstrip())

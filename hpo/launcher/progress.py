"""What a launch looks like while it runs: a live table on a terminal, a line an event elsewhere."""

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.analysis.noise import beside, decimals, rounded, sigmas
from hpo.analysis.snapshot import ARM, Snapshot, counts, value
from hpo.analysis.targets import Milestone, milestones_of, targets
from hpo.console import number, stderr
from hpo.launcher.processes import ENDS, Event
from hpo.storage.trials import State


class Plain:
    """A line an event, for logs and pipes."""

    def __init__(self, snapshot: Snapshot, quiet: bool = False) -> None:
        self.snapshot, self.quiet = snapshot, quiet

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, event: Event) -> None:
        if not self.quiet and (text := line(event, self.snapshot.rungs, digits(self.snapshot))):
            who = f"worker {event['worker']}: " if "worker" in event else ""
            stderr().print(f"{who}{text}", markup=False)

    def refresh(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot


class Screen:
    """One line a worker, best so far against baseline and anchors, progress, time left."""

    def __init__(self, snapshot: Snapshot, workers: int) -> None:
        self.snapshot = snapshot
        self.workers: dict[int, Event] = {i: {"event": "waking"} for i in range(1, workers + 1)}
        self.rates: dict[int, float] = {}
        self.begun = time.monotonic()
        self.done_before = _done(snapshot)
        self.told = self._standing(snapshot)
        self.live = Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self.render)

    def __enter__(self) -> "Screen":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.refresh()
        self.live.stop()

    def show(self, event: Event) -> None:
        worker = event.get("worker", 0)
        if worker in self.workers:
            self.workers[worker] = {"event": "ended"} if event["event"] == "exit" else event
            if event.get("tokens_per_second"):
                self.rates[worker] = event["tokens_per_second"]
        elif text := line(event, self.snapshot.rungs, digits(self.snapshot)):
            self.live.console.print(text, markup=False, highlight=False)

    def refresh(self, snapshot: Snapshot) -> None:
        self.told = self._standing(snapshot)  # once, not each time the table is drawn
        self.snapshot = snapshot

    def render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("worker", "trial", "rung", self.snapshot.objective, "tokens/s", ""):
            table.add_column(column, justify="left" if column == "" else "right", min_width=6)
        for worker, event in self.workers.items():
            table.add_row(*self._row(worker, event))
        told = [self._progress(), *self.told]
        return Group(Text(self.snapshot.name, style="bold"), table, *map(Text, told))

    def _row(self, worker: int, event: Event) -> tuple[str, ...]:
        if "trial" not in event:
            return str(worker), "", "", "", "", str(event["event"])
        loss, rate = event.get("value"), self.rates.get(worker)
        word = event["event"] if event["event"] in (*ENDS, "requeued", "taken") else ""
        return (
            str(worker),
            str(event["trial"]),
            f"{event.get('rung', 0)}/{self.snapshot.rungs}",
            "" if loss is None else _said(self.snapshot, loss),
            "" if rate is None else f"{rate:,.0f}",
            word,
        )

    def _progress(self) -> str:
        n = counts(self.snapshot)
        ended = _done(self.snapshot)
        text = f"{n['complete']} complete, {n['pruned']} pruned, {n['failed']} failed, {n['running']} running"
        total = self.snapshot.budget.get("trials")
        if not total:
            return text
        left, fresh = total - ended, ended - self.done_before
        text += f", {n['waiting']} waiting of {total}"
        if fresh and left > 0:
            text += f"; about {clock((time.monotonic() - self.begun) / fresh * left)} left"
        return text

    @staticmethod
    def _standing(of: Snapshot) -> list[str]:
        return [standing(of) or "no trial complete yet", *aims(of)]


def standing(of: Snapshot) -> str:
    """Return the best trial against baseline and anchors, in one line; "" before there is one."""
    if of.spec.get("arms"):
        return _arms(of)
    best, baseline = of.best(), of.baseline()
    if best is None:
        return ""
    against, floor = [], of.noise
    if floor is not None:
        against.append(f"baseline {beside(floor)}")
    elif baseline is not None and (was := value(baseline)) is not None:
        against.append(f"baseline {number(was)}")
    suffix = "_bpb" if of.objective.endswith("val_bpb") else ""
    against += [f"{name} {number(of.anchors[name + suffix])}" for name in ("bigram", "unigram") if of.anchors]
    found = f"best: trial {best.number}, {of.objective} {_said(of, best.values[0])}"
    if floor is None:
        return f"{found} ({', '.join(against)})" if against else found
    return f"{found}{_below(sigmas(floor, best, best.values[0]))}; {', '.join(against)}"


def _said(of: Snapshot, value: float) -> str:
    return number(rounded(of.noise, value))


def _below(n: float | None) -> str:
    return "" if n is None else f" ({abs(n):.1f} sigma {'below' if n >= 0 else 'above'} the baseline)"


def aims(of: Snapshot) -> list[str]:
    """Return a line for each target, and one of what the best trial made of the milestones."""
    wanted = targets(of.spec.get("targets") or {}, of.reached, of.rung_tokens)
    told = [_target(of, name, found) for name, found in wanted.items()]
    best = of.best()
    if best is not None and (found := milestones_of(of, best)):
        told.append(f"milestones of trial {best.number}: {_passed(of, found)}")
    if of.target is not None:
        running = counts(of)["running"]
        on = f"; {running} that run go on to their end" if running else ""
        told.append(
            f"ended by its target {of.target}: no further trial is begun; another budget.target in its file goes on{on}"
        )
    return told


def _passed(of: Snapshot, found: Sequence[Milestone]) -> str:
    """Return which milestones were met and missed, and by how much."""
    return ", ".join(m.told(None if of.noise is None else decimals(of.noise.sigma)) for m in found)


def _target(of: Snapshot, name: str, found: Mapping[str, Any]) -> str:
    wanted, reach = f"target {name} ({found['target']:g})", of.reached.get(name)
    if reach is None:
        best = of.best()
        missing = "" if best is None else f"; the best is {_said(of, best.values[0] - found['target'])} above it"
        return f"{wanted}: not reached yet{missing}"
    after = f"{reach.rung} rungs of its own and {reach.rungs} of the study"
    if found["tokens"] is not None:
        after = f"{found['tokens']:,} tokens of its own and {found['study_tokens']:,} of the study"
    return (
        f"{wanted}: reached by trial {reach.trial} at rung {reach.rung}, {of.objective} {_said(of, reach.value)}, "
        f"after {after}"
    )


def _arms(of: Snapshot) -> str:
    """Return the mean of each arm so far."""
    values: dict[str, list[float]] = {}
    for t in of.in_state(State.COMPLETE):
        values.setdefault(str(t.user_attrs.get(ARM)), []).append(t.values[0])
    told = [f"{arm} {number(fmean(found))} ({len(found)})" for arm, found in values.items()]
    return f"{of.objective}, mean (runs): {', '.join(told)}" if told else ""


def digits(of: Snapshot) -> int:
    """Return the decimals with which values of a study's objective are told."""
    return 4 if of.noise is None else decimals(of.noise.sigma)


def line(event: Event, rungs: int, digits: int = 4) -> str:
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


def _done(of: Snapshot) -> int:
    n = counts(of)
    return n["complete"] + n["pruned"] + n["failed"]


def clock(seconds: float) -> str:
    """Return a duration as a person says it: 40 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

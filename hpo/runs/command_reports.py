"""Metrics of a command: found in its output, in a file, or reported by `hpo.current_trial`, and turned into rungs."""

import contextlib
import json
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo.study.command import CommandPlan
from model.section import flatten

Row = dict[str, Any]  # metrics of a rung, with its number as `rung`
OnReport = Callable[[float | None, Mapping[str, Any]], object]  # (step, metrics)

MAX_READ = 2**22  # bytes of a file that are read at once


class RungCounter:
    """Turns the steps that a command reports into rungs. Safe for several threads.

    The first reported step at or past the mark of a rung is the value of that rung. A step that is not larger than an
    earlier one is ignored, so that it does not matter whether a script reports a step twice or out of order.

    n_reports: number of reports with the objective. step: the largest step of them.
    exceeded: the rung after the last one, if the command has reported it; 0 otherwise.
    """

    def __init__(self, plan: CommandPlan, known: int) -> None:
        """Count the rungs after the first `known` ones, which an earlier attempt has reported."""
        self._plan, self._next = plan, known + 1
        self._lock = threading.Lock()
        self._rows: deque[Row] = deque()
        self._others: Row = {}  # metrics of reports without the objective, for the next rung
        self._last: Row | None = None
        self.n_reports, self.step, self.exceeded = 0, -math.inf, 0

    def add(self, step: float | None, metrics: Mapping[str, Any]) -> bool:
        """Count a report; return whether a rung was reached. step: None for the next whole number."""
        numbers = {name: number for name, value in metrics.items() if (number := as_number(value)) is not None}
        with self._lock:
            if self._plan.objective not in numbers:
                self._others |= numbers
                return False
            self.n_reports += 1
            step = self.n_reports if step is None else step
            if not step > self.step:
                return False
            self.step = step
            row = {**self._others, **numbers, "step": int(step) if float(step).is_integer() else step}
            return self._add_rungs(row)

    def _add_rungs(self, row: Row) -> bool:
        steps = self._plan.steps
        if steps is None:
            self._last = row
            return False
        before = self._next
        while self._next <= steps.n_rungs and steps.mark(self._next) <= self.step:
            self._rows.append({**row, "rung": self._next})
            self._next += 1
        if self._next > before:
            self._others.clear()
        if steps.mark(steps.n_rungs + 1) <= self.step:
            self.exceeded = steps.n_rungs + 1
        return self._next > before

    def end(self) -> None:
        """Make the last report the value of the only rung, if the study has no steps. The command has succeeded."""
        with self._lock:
            if self._plan.steps is None and self._last is not None:
                self._rows.append({**self._last, "rung": 1})

    def pop(self) -> Row | None:
        """Return the metrics of the next rung, None if it is not reached."""
        with self._lock:
            return self._rows.popleft() if self._rows else None

    def expected(self) -> str:
        """Return what a command that ended early should have done."""
        objective, steps = self._plan.objective, self._plan.steps
        if not self.n_reports:
            where = "it reported"
            if self._plan.metric is not None:
                where = "a line matches metric.pattern" if self._plan.metric.pattern else "metric.file has a line"
            return f"and nothing of what {where} has a number for {objective}"
        if steps is None:
            return ""
        return (
            f"after step {self.step:g}, and the last rung is at step {steps.last:g}; "
            "if the script always ends there, set steps.last to this step"
        )


class PatternReader:
    """Searches each line of an output for patterns."""

    def __init__(self, plan: CommandPlan, on_report: OnReport) -> None:
        self._patterns = [re.compile(pattern) for pattern in plan.metric.pattern] if plan.metric else []
        self._on_report = on_report
        self._has_step = any("step" in pattern.groupindex for pattern in self._patterns)
        self._step: float | None = None

    def read(self, line: str) -> None:
        """Report the metrics of a line. A pattern without a step belongs to the last step that another one found."""
        for pattern in self._patterns:
            if (match := pattern.search(line)) is None:
                continue
            found = match.groupdict()
            given = as_number(found.pop("step", None))
            self._step = given if given is not None else self._step
            if found and (self._step is not None or not self._has_step):
                self._on_report(self._step, found)


class FileReader:
    """Reads the lines that are appended to a file of JSON objects."""

    def __init__(self, path: Path, step: str, on_report: OnReport, from_end: bool = False) -> None:
        """Read a file from its start, or with `from_end` only what is appended from now on."""
        self._path, self._step, self._on_report = path, step, on_report
        self._offset, self._rest, self._inode = 0, b"", 0
        self.marks: set[str] = set()  # keys of the lines that are no report
        if from_end:
            with contextlib.suppress(OSError):
                self._offset, self._inode = path.stat().st_size, path.stat().st_ino

    def read(self) -> bool:
        """Report the new lines; return whether there may be more."""
        try:
            status = self._path.stat()
            if status.st_size < self._offset or self._inode not in (0, status.st_ino):  # the file was written anew
                self._offset, self._rest = 0, b""
            self._inode = status.st_ino
            if status.st_size == self._offset:
                return False
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(MAX_READ)
        except OSError:  # not written yet
            return False
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for row in _objects(lines):
            self._report(row)
        return True

    def end(self) -> None:
        """Report the rest of the file, a last line without an end included."""
        while self.read():
            pass
        for row in _objects([self._rest]):
            self._report(row)
        self._rest = b""

    def _report(self, row: Mapping[str, Any]) -> None:
        metrics = flatten(row)
        step = as_number(metrics.pop(self._step, None))
        self.marks |= metrics.keys() if step is None else set()
        self._on_report(step, metrics)


def as_number(value: Any) -> float | None:
    """Return a number that a script has written, None if it is none: 3, 1e-3, nan, inf, 2.31 before a comma."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value.strip().rstrip(",;:)]}%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None


def _objects(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in these lines; other lines are left out."""
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row

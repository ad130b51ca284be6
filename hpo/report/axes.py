"""The hyperparameters of a study as figures and models see them: each from 0 to 1, with ticks to read it by."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from hpo.analysis.snapshot import Snapshot
from hpo.search.ranges import Choices, Entry, Space, unit_position
from hpo.storage.trials import Trial

LONGEST = 18  # letters of a name on an axis
MOST = 12  # ticks of an axis


@dataclass(frozen=True)
class Axis:
    """One hyperparameter: its dotted path and its range; whole: it takes whole numbers only."""

    path: str
    entry: Entry
    whole: bool = False

    @property
    def discrete(self) -> bool:
        return isinstance(self.entry, Choices)

    @property
    def steps(self) -> int | None:
        """How many steps of equal length lead from one end of the range to the other; None where there are none."""
        if isinstance(self.entry, Choices) or self.entry.log or self.entry.complement_log:
            return None
        step = self.entry.step or (1 if self.whole else None)
        return step and round((self.entry.high - self.entry.low) / step)

    @property
    def label(self) -> str:
        """The path, to be shown by plotly, which reads text as HTML."""
        return html.escape(self.path, quote=False)

    def unit(self, value: Any) -> float:
        """Return where a value lies: 0 at the low end and 1 at the high end of the range, on its own scale."""
        if isinstance(self.entry, Choices):
            n = len(self.entry.choices)
            return self.entry.choices.index(value) / (n - 1) if n > 1 else 0.5
        entry = self.entry
        return unit_position(value, entry.low, entry.high, log=entry.log, complement_log=entry.complement_log)

    def ticks(self) -> tuple[list[float], list[str]]:
        """Return places between 0 and 1, and what to write there."""
        if isinstance(self.entry, Choices):
            shown = self.entry.choices[:: -(-len(self.entry.choices) // MOST)]
            return [self.unit(choice) for choice in shown], [short(str(choice)) for choice in shown]
        values = _round_values(float(self.entry.low), float(self.entry.high), self.entry.log, self.entry.complement_log)
        return [self.unit(value) for value in values], [f"{value:.4g}" for value in values]

    def scale(self) -> str:
        """Return in words how the range is drawn, "" for the plain way."""
        if isinstance(self.entry, Choices):
            return ""
        return " (log scale)" if self.entry.log else " (log scale of 1 − x)" if self.entry.complement_log else ""


def _round_values(low: float, high: float, log: bool, complement: bool) -> list[float]:
    """Return a few round values between two ends."""
    if complement:
        return [round(1 - value, 12) for value in _round_values(1 - high, 1 - low, True, False)][::-1]
    if not log:
        step = 10 ** math.floor(math.log10((high - low) / 2))
        step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
        return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in (1,), (1, 3), (1, 2, 5), range(1, 10):
        found = [float(f"{m}e{k}") for k in decades for m in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            return found if len(found) <= MOST else found[:: -(-len(found) // MOST)]
    return [low, high]


def short(text: str, longest: int = LONGEST) -> str:
    """Return a text cut to size, to be shown by plotly."""
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…", quote=False)  # it knows no &quot;


def axes(snapshot: Snapshot) -> dict[str, Axis]:
    """Return the hyperparameters that a study varies, by path; those of one value vary nothing."""
    space: Mapping[str, Entry] = TypeAdapter(Space).validate_python(snapshot.spec["space"])
    whole = {path for trial in snapshot.trials[:20] for path, value in trial.params.items() if isinstance(value, int)}
    found = {path: Axis(path, entry, path in whole) for path, entry in space.items()}
    return {path: axis for path, axis in found.items() if not _single(axis.entry)}


def _single(entry: Entry) -> bool:
    return isinstance(entry, Choices) and len(entry.choices) < 2


def units(trial: Trial, of_axes: Mapping[str, Axis]) -> dict[str, float]:
    """Return where a trial lies on each axis that it has."""
    return {path: of_axes[path].unit(value) for path, value in trial.params.items() if path in of_axes}


def common(points: Sequence[Mapping[str, float]], of_axes: Mapping[str, Axis], share: float = 0.8) -> list[str]:
    """Return the paths that at least this share of the points have: those of a component's fields may be missing."""
    n = len(points)
    return [path for path in of_axes if n and sum(path in point for point in points) >= share * n]

"""Map the hyperparameters of a study to axes from 0 to 1, with ticks for figures."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from hpo.analysis.snapshot import Snapshot
from hpo.console import printable
from hpo.search.ranges import Choices, Entry, Space
from hpo.search.scale import unit_position
from hpo.storage.trials import Trial

MAX_CHARACTERS = 18  # of a name on an axis
MAX_TICKS = 12


@dataclass(frozen=True)
class Axis:
    """One hyperparameter: its dotted path and its range; integer: whether all its values are integers."""

    path: str
    entry: Entry
    integer: bool = False

    @property
    def discrete(self) -> bool:
        return isinstance(self.entry, Choices)

    @property
    def n_steps(self) -> int | None:
        """The number of equal steps between the ends of the range, None for a continuous or logarithmic range."""
        if isinstance(self.entry, Choices) or self.entry.log or self.entry.complement_log:
            return None
        step = self.entry.step or (1 if self.integer else None)
        return step and round((self.entry.high - self.entry.low) / step)

    @property
    def label(self) -> str:
        """The path, escaped because Plotly reads text as HTML."""
        return html.escape(self.path, quote=False)

    def unit(self, value: Any) -> float:
        """Return the position of a value in the range, on its own scale: 0 at the low end, 1 at the high end."""
        if isinstance(self.entry, Choices):
            n = len(self.entry.choices)
            return self.entry.choices.index(value) / (n - 1) if n > 1 else 0.5
        entry = self.entry
        return unit_position(value, entry.low, entry.high, log=entry.log, complement_log=entry.complement_log)

    def ticks(self) -> tuple[list[float], list[str]]:
        """Return the positions of the ticks, in [0, 1], and their labels."""
        if isinstance(self.entry, Choices):
            shown = self.entry.choices[:: -(-len(self.entry.choices) // MAX_TICKS)]
            return [self.unit(choice) for choice in shown], [short(str(choice)) for choice in shown]
        values = _round_values(float(self.entry.low), float(self.entry.high), self.entry.log, self.entry.complement_log)
        return [self.unit(value) for value in values], [f"{value:.4g}" for value in values]

    def scale(self) -> str:
        """Return the scale of the range as text, "" for a linear scale."""
        if isinstance(self.entry, Choices):
            return ""
        return " (log scale)" if self.entry.log else " (log scale of 1 − x)" if self.entry.complement_log else ""


def _round_values(low: float, high: float, log: bool, complement: bool) -> list[float]:
    """Return a few round values between two ends, on the scale of the range."""
    if complement:
        return [round(1 - value, 12) for value in _round_values(1 - high, 1 - low, True, False)][::-1]
    if not log:
        step = 10 ** math.floor(math.log10((high - low) / 2))
        step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
        return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in (1,), (1, 3), (1, 2, 5), range(1, 10):
        values = [float(f"{m}e{k}") for k in decades for m in factors]
        values = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(values) >= 3:
            return values[:: -(-len(values) // MAX_TICKS)]
    return [low, high]


def short(text: str, longest: int = MAX_CHARACTERS) -> str:
    """Truncate a text to `longest` characters and escape it for Plotly, which does not decode &quot;."""
    text = printable(text, keep="")
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…", quote=False)


def value_text(value: Any) -> str:
    """Return a value of a hyperparameter as a figure shows it."""
    return f"{value:.4g}" if isinstance(value, float) else short(str(value), 60)


def axes(snapshot: Snapshot) -> dict[str, Axis]:
    """Return the hyperparameters that a study varies, by path: those with more than one value."""
    space: Mapping[str, Entry] = TypeAdapter(Space).validate_python(snapshot.spec["space"])
    integers = {
        path for trial in snapshot.trials[:20] for path, value in trial.params.items() if isinstance(value, int)
    }
    varied = {path: e for path, e in space.items() if not isinstance(e, Choices) or len(e.choices) > 1}
    return {path: Axis(path, entry, path in integers) for path, entry in varied.items()}


def units(trial: Trial, of_axes: Mapping[str, Axis]) -> dict[str, float]:
    """Return the position of a trial on each axis for which it has a value."""
    return {path: of_axes[path].unit(value) for path, value in trial.params.items() if path in of_axes}


def common_paths(points: Sequence[Mapping[str, float]], of_axes: Mapping[str, Axis], share: float = 0.8) -> list[str]:
    """Return the paths that at least this share of the points have; only some trials have fields of a component."""
    n = len(points)
    return [path for path in of_axes if n and sum(path in point for point in points) >= share * n]

"""The rows of the live view: one for each running trial, and one for the best trial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from hpo.analysis.snapshot import Snapshot, trial_status
from hpo.analysis.summary import objective_decimals, objective_text
from hpo.console import format_value, printable
from hpo.storage.attributes import ARM, SEED
from hpo.storage.trials import Trial
from hpo.view.marks import Marks, Scale, gap

WIDE, NARROW = 100, 70  # columns of the terminal from which on, and below which, the layout changes
GAP = "  "
MAX_PARAM_LINES = 2


@dataclass
class TrialRow:
    """A trial as the view shows it. label: its number, or "best N"."""

    label: str
    rung: int
    curve: Mapping[int, float]
    params: Mapping[str, str]

    @property
    def value(self) -> float | None:
        return self.curve[max(self.curve)] if self.curve else None


def trial_row(snapshot: Snapshot, trial: Trial, names: Mapping[str, str], label: str = "") -> TrialRow:
    """Return the row of a trial; names: field -> its short name."""
    attrs = trial.user_attrs
    if snapshot.spec.get("arms"):
        params = {key: str(attrs[key]) for key in (ARM, SEED) if key in attrs}
    else:
        params = {names[k]: _param_text(v) for k, v in trial.params.items() if k in names}
    return TrialRow(label or str(trial.number), trial.last_step or 0, dict(trial.intermediate_values), params)


def _param_text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else printable(format_value(value), keep="")[:24]


def running_trials(snapshot: Snapshot) -> list[Trial]:
    """Return the trials that a worker trains now."""
    return [t for t in snapshot.own if trial_status(snapshot, t) == "running"]


def short_names(snapshot: Snapshot) -> dict[str, str]:
    """Return the fields that the study varies with the shortest end of each that is unique among them."""
    space = snapshot.spec.get("space") or {}
    varied = [path for path, entry in space.items() if len((entry or {}).get("choices") or [0, 1]) > 1]
    names = {}
    for path in varied:
        parts = path.split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
        unique = (e for e in ends if sum(p == e or p.endswith(f".{e}") for p in varied) == 1)
        names[path] = printable(next(unique, path), keep="")
    return names


class RowLayout:
    """Lays rows out for a width: parameters in columns of their own, or on lines below each trial."""

    def __init__(self, snapshot: Snapshot, rows: Sequence[TrialRow], best: Mapping[int, float], width: int) -> None:
        self.snapshot, self.rows, self.best, self.width = snapshot, rows, best, width
        self.size = 16 if width >= WIDE else 10 if width >= NARROW else 8  # of bars and curves
        self.scale = Scale([best, *(row.curve for row in rows)], snapshot.rungs, snapshot.direction)
        fixed_width = sum(len(text) + len(GAP) for text in self._header_cells())
        self.params = _columns(rows)
        params_width = sum(n + len(GAP) for n in self.params.values())
        self.inline = bool(self.params) and fixed_width + params_width - len(GAP) <= width

    def _header_cells(self) -> list[str]:
        decimals = objective_decimals(self.snapshot)
        values = [objective_text(self.snapshot, row.value) for row in self.rows if row.value is not None]
        self.widths = {
            "trial": max(5, *(len(row.label) for row in self.rows), 0) if self.rows else 5,
            "progress": self.size,
            "rung": max(4, 2 * len(str(self.snapshot.rungs)) + 1),
            "value": max([6, *map(len, values)]),
            "gap": max(7, decimals + 4),
            "curve": max(5, min(self.size, self.snapshot.rungs)),
        }
        objective = printable(self.snapshot.objective, keep="")
        room = max(self.widths["value"], min(len(objective), 8 if self.width < NARROW else 14))
        self.widths["value"] = room
        cells = {"trial": "trial", "progress": "progress", "rung": "rung", "value": objective[:room]}
        cells |= {"gap": "vs best", "curve": "curve"}
        return [_aligned(cells[key], n, key) for key, n in self.widths.items()]

    def header(self) -> Text:
        """Return the names of the columns."""
        cells = self._header_cells()
        if self.inline:
            cells += [name[:n].ljust(n) for name, n in self.params.items()]
        return Text(GAP.join(cells).rstrip(), style="bold")

    def lines(self, row: TrialRow, marks: Marks) -> list[Text]:
        """Return the line of a trial, and the lines of its parameters where these have no columns."""
        value, w = row.value, self.widths
        share = row.rung / self.snapshot.rungs
        shown = "" if value is None else objective_text(self.snapshot, value)
        difference = Text("")
        if value is not None and not row.label.startswith("best"):
            reference = self.best.get(max(row.curve))
            difference = gap(value, reference, objective_decimals(self.snapshot), self.snapshot.direction)
        difference.pad_left(max(0, w["gap"] - len(difference.plain)))
        curve = marks.sparkline(row.curve, self.best, self.scale, w["curve"])
        curve.pad_right(max(0, w["curve"] - len(curve.plain)))
        cells = [
            Text(row.label.rjust(w["trial"])),
            marks.bar(share, self.size),
            Text(f"{row.rung}/{self.snapshot.rungs}".rjust(w["rung"])),
            Text(shown.rjust(w["value"])),
            difference,
            curve,
        ]
        if self.inline:
            cells += [Text(row.params.get(name, "").ljust(n)) for name, n in self.params.items()]
        line = Text(GAP).join(cells)
        line.rstrip()
        return [line, *([] if self.inline else self._param_lines(row))]

    def _param_lines(self, row: TrialRow) -> list[Text]:
        indent = " " * (self.widths["trial"] + len(GAP))
        lines: list[str] = []
        for word in (f"{name} {value}" for name, value in row.params.items()):
            if lines and len(lines[-1]) + len(GAP) + len(word) <= self.width:
                lines[-1] += GAP + word
            elif len(lines) < MAX_PARAM_LINES:
                lines.append((indent + word)[: self.width])
            else:
                lines[-1] = lines[-1][: self.width - 4] + " ..."
                break
        return [Text(line, style="dim") for line in lines]


def _columns(rows: Sequence[TrialRow]) -> dict[str, int]:
    """Return the width of the column of each parameter."""
    widths: dict[str, int] = {}
    for row in rows:
        for name, value in row.params.items():
            widths[name] = max(widths.get(name, len(name)), len(value))
    return widths


def _aligned(text: str, width: int, key: str) -> str:
    return text.ljust(width) if key in ("progress", "curve") else text.rjust(width)

"""What the methods of `hpo.Study` return. Each result is data, and shows itself as text or in a notebook."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot, find_trial, trial_value
from hpo.commands.show import trial_record
from hpo.console import printable, record_text
from hpo.storage.attributes import FIXED_VALUES, METRICS


class Shown:
    """A result that a notebook shows as its text, which a subclass may replace by HTML."""

    text: str

    def __str__(self) -> str:
        return self.text

    def to_html(self) -> str:
        return f"<pre>{escape(printable(self.text))}</pre>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": printable(self.text), "text/html": self.to_html()}


class Status(Shown, dict[str, Any]):
    """The progress of a study: the fields that `hpo status --format json` prints, and the text of `hpo status`."""

    def __init__(self, fields: Mapping[str, Any], text: str) -> None:
        super().__init__(fields)
        self.text = text


@dataclass(frozen=True, repr=False)
class Trial(Shown):
    """A trial of a study.

    value: the objective, or the last finite value of a trial that was not completed. params: value of each searched
    field. curve: rung -> value. metrics: those of the last rung. record: all that `hpo show` prints.
    """

    number: int
    state: str
    kind: str
    value: float | None
    params: Mapping[str, Any]
    curve: Mapping[int, float]
    metrics: Mapping[str, Any]
    record: Mapping[str, Any] = field(compare=False)

    @property
    def text(self) -> str:  # type: ignore[override]
        return record_text(self.record)

    def __repr__(self) -> str:
        return f"Trial({self.number}, state={self.state!r}, value={self.value!r}, params={dict(self.params)!r})"


def read_trial(snapshot: Snapshot, number: int, record: Mapping[str, Any] | None = None) -> Trial:
    """Return a trial of a study; record: that of `hpo best` instead of that of `hpo show`."""
    trial = find_trial(snapshot, number)
    record = trial_record(snapshot, number) if record is None else record
    attrs = trial.user_attrs
    return Trial(
        number,
        str(record["state"]),
        str(attrs.get("kind", "search")),
        trial_value(trial),
        dict(attrs.get(FIXED_VALUES) or trial.params),
        dict(sorted(trial.intermediate_values.items())),
        dict(attrs.get(METRICS) or {}),
        record,
    )


@dataclass(frozen=True)
class Report(Shown):
    """The result of `Study.report`: the verdict of the report, and its files."""

    headline: str
    grounds: Sequence[str]
    warnings: Sequence[str]
    paths: Sequence[Path]

    @property
    def text(self) -> str:  # type: ignore[override]
        notes = [f"note: {warning}" for warning in self.warnings]
        return "\n".join([self.headline, *self.grounds, *notes, *map(str, self.paths)])

    def to_html(self) -> str:
        from hpo.report.html import bullets, paragraph

        links = [f'<a href="{escape(path.as_posix())}">{escape(path.as_posix())}</a>' for path in self.paths]
        notes = [f"Note: {warning}" for warning in self.warnings]
        files = f"<p>{', '.join(links)}</p>" if links else ""
        return f"<b>{paragraph(self.headline)}</b>{bullets([*self.grounds, *notes])}{files}"

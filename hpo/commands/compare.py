"""`hpo compare`: how two studies or two trials differ: configuration, curves, and what their seeds show."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from hpo.analysis.export import configuration
from hpo.analysis.snapshot import Snapshot, find_trial, read_snapshot, trial_status
from hpo.console import Format, print_record, print_records, show
from hpo.errors import Problem
from hpo.evidence.run_sets import runs_of
from hpo.evidence.two_sided import verdict_text
from hpo.storage.attributes import FIXED_VALUES
from hpo.storage.retry import OpenStorage
from hpo.storage.trials import Trial
from hpo.study.stored import study_file_tree, study_from_spec
from hpo.view.marks import Marks, Scale
from model.section import flat, flatten


@dataclass(frozen=True)
class Side:
    """One side of a comparison. trial: the trial, or the best trial of a study, None if the study has none yet."""

    snapshot: Snapshot
    trial: Trial | None
    is_study: bool

    @property
    def name(self) -> str:
        if self.is_study:
            return self.snapshot.name
        return f"{self.snapshot.name}:{self.trial.number}" if self.trial else self.snapshot.name


def compare(store: OpenStorage, a: str, b: str, study: str | None, format: Format) -> None:
    """Print the differences of two sides, their curves and the verdict.

    a, b: each the name of a study, NAME:NUMBER, or the number of a trial of `study`.

    Raises:
        Problem: a side does not exist, or a study is compared with a trial.
    """
    sides = _side(store, a, study), _side(store, b, study)
    if sides[0].is_study != sides[1].is_study:
        raise Problem(f"must be two studies or two trials, got {a} and {b}; STUDY:NUMBER names a trial")
    differences, curves, verdicts = _differences(*sides), _curves(*sides), _verdicts(store, *sides)
    if format is not Format.table:
        record = {"a": sides[0].name, "b": sides[1].name, "differences": differences, "curves": curves}
        print_records(differences, format) if format is Format.csv else print_record(record | verdicts, format)
        return
    show(f"A: {_title(sides[0])}\nB: {_title(sides[1])}\n")
    print_records(differences, format) if differences else show("equal configurations")
    if curves:
        show("")
        print_records(curves, format)
        show(_sparklines(*sides))
    show("")
    for subject, text in verdicts.items():
        show(f"{subject}: {text}")


def _side(store: OpenStorage, text: str, study: str | None) -> Side:
    name, _, number = text.rpartition(":")
    if re.fullmatch(r"\d+", text):
        snapshot = read_snapshot(store, study)
        return Side(snapshot, find_trial(snapshot, int(text)), False)
    if name and re.fullmatch(r"\d+", number):
        snapshot = read_snapshot(store, name)
        return Side(snapshot, find_trial(snapshot, int(number)), False)
    snapshot = read_snapshot(store, text)
    return Side(snapshot, snapshot.best(), True)


def _title(side: Side) -> str:
    snapshot, trial = side.snapshot, side.trial
    if trial is None:
        return f"study {snapshot.name}, no trial is complete"
    value = f"{snapshot.objective} {trial.values[0]:.6g}" if trial.values else "no result yet"
    if side.is_study:
        return f"study {side.name}, best trial {trial.number}, {value}"
    return f"trial {side.name}, {trial_status(snapshot, trial)}, {value}"


def _differences(a: Side, b: Side) -> list[dict[str, Any]]:
    """Return the fields in which two studies or the configurations of two trials differ."""
    one: Mapping[str, Any]
    two: Mapping[str, Any]
    if a.is_study:
        one, two = (flatten(study_file_tree(side.snapshot.spec, side.snapshot.budget)) for side in (a, b))
        data = {"data hash": (a.snapshot.data_hash, b.snapshot.data_hash)}
    else:
        one, two = _values(a), _values(b)
        data = {}
    rows = {key: (one.get(key), two.get(key)) for key in dict.fromkeys([*one, *two])} | data
    return [{"field": key, "A": x, "B": y} for key, (x, y) in rows.items() if x != y]


def _values(side: Side) -> Mapping[str, Any]:
    """Return the configuration of a trial by dotted field."""
    assert side.trial is not None
    values = side.trial.user_attrs.get(FIXED_VALUES) or side.trial.params
    try:
        return flat(configuration(study_from_spec(side.snapshot.spec), side.trial))
    except (
        Problem
    ):  # the code that the study names is not here or not permitted, so fields of components may be missing
        return flatten(side.snapshot.spec["base"]) | dict(values)


def _curves(a: Side, b: Side) -> list[dict[str, Any]]:
    """Return the values of both trials at each rung, or by tokens where the lengths of their runs differ."""
    if a.trial is None or b.trial is None or a.snapshot.objective != b.snapshot.objective:
        return []
    one, two = dict(a.trial.intermediate_values), dict(b.trial.intermediate_values)
    key, step = "rung", (1.0, 1.0)
    if a.snapshot.rung_tokens != b.snapshot.rung_tokens and a.snapshot.rung_tokens and b.snapshot.rung_tokens:
        key, step = "tokens", (a.snapshot.rung_tokens, b.snapshot.rung_tokens)
    one, two = {round(r * step[0]): v for r, v in one.items()}, {round(r * step[1]): v for r, v in two.items()}
    rows = []
    for at in sorted(one.keys() | two.keys()):
        x, y = one.get(at), two.get(at)
        rows.append({key: at, "A": x, "B": y, "B - A": None if x is None or y is None else y - x})
    return rows


def _sparklines(a: Side, b: Side) -> str:
    """Return both curves as sparklines on a common scale."""
    assert a.trial is not None
    assert b.trial is not None
    curves = [dict(side.trial.intermediate_values) for side in (a, b) if side.trial]
    marks = Marks("utf" in Console().encoding.lower())
    rungs = max(a.snapshot.rungs, b.snapshot.rungs)
    scale = Scale([*curves], rungs, a.snapshot.direction)
    lines = [marks.sparkline(curve, {}, scale, 40).plain.rstrip() for curve in curves]
    return f"\nA  {lines[0]}\nB  {lines[1]}"


def _verdicts(store: OpenStorage, a: Side, b: Side) -> dict[str, str]:
    """Return what the runs of both sides show, by what is compared."""
    if (a.snapshot.objective, a.snapshot.direction) != (b.snapshot.objective, b.snapshot.direction):
        return {"verdict": f"none: the objectives differ, {a.snapshot.objective} and {b.snapshot.objective}"}
    if a.snapshot.data_hash != b.snapshot.data_hash:
        return {"verdict": "none: the data differ, so the values are not comparable"}
    pairs = {"verdict" if not a.is_study else "best trials": (a.trial, b.trial)}
    if a.is_study:
        pairs["baselines"] = (a.snapshot.baseline(), b.snapshot.baseline())
    return {
        subject: verdict_text(a.snapshot, runs_of(store, a.snapshot, x), runs_of(store, b.snapshot, y))
        for subject, (x, y) in pairs.items()
        if x is not None and y is not None
    } or {"verdict": "none: no trial is complete on both sides"}

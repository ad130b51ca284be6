"""What a tracker shows of a trial: parameters, curve, status and tags, as the storage holds them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot, trial_status
from hpo.runs.metrics import read_rungs
from hpo.runs.run_dir import trial_folder
from hpo.storage.attributes import ARM, FIXED_VALUES, METRICS, NOTE, RETRIED, SEED, SUGGESTED_BY
from hpo.storage.trials import State, Trial
from model.section import flatten

ENDED = (State.COMPLETE, State.PRUNED, State.FAIL)
ABOUT = ("confirms", "ablates", "verifies", "ladder_of")  # keys of `about` that name the study of a comparison


@dataclass(frozen=True)
class TrackedRun:
    """One trial of a study. A resumed trial is the same run, and a retry is another trial.

    status: running, interrupted, paused, complete, or why the trial ended, such as pruned or oom. curve: step ->
    metrics, by increasing step. result: metrics that are known only at the end, such as the costs of the run.
    """

    study: str
    uid: str
    number: int
    objective: str
    status: str
    state: State
    started: datetime | None
    ended: datetime | None
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    curve: Mapping[int, Mapping[str, float]]
    result: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.study}-{self.number:04d}"

    @property
    def key(self) -> str:
        """A name that no run of another study has, even if it has the name of a deleted study."""
        return f"{self.uid[:12] or self.study}-{self.number}"

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def points_after(self, step: int) -> Iterator[tuple[int, Mapping[str, float]]]:
        """Yield (step, metrics) of the curve after a step."""
        return ((at, metrics) for at, metrics in self.curve.items() if at > step)

    @property
    def last_step(self) -> int:
        return max(self.curve, default=0)

    def seconds(self, step: int) -> float | None:
        """Return when a step was reached, in seconds since 1970; None if the trial does not measure its time."""
        seconds = self.curve.get(step, self.result).get("seconds")
        return None if seconds is None or self.started is None else self.started.timestamp() + seconds


def has_configuration(trial: Trial) -> bool:
    """Return whether the parameters of a trial are chosen, or will never be."""
    return bool(trial.params) or FIXED_VALUES in trial.user_attrs or trial.state in ENDED


def tracked_run(snapshot: Snapshot, trial: Trial, folder: Path) -> tuple[TrackedRun, bool]:
    """Return the run of a trial, and whether the file of metrics has its last rung.

    A worker reports a rung to the storage before it writes the other metrics into the file, which is on the machine of
    the worker.

    folder: run folder of the study.
    """
    reported = trial.intermediate_values
    rows = read_rungs(trial_folder(folder, trial.number) / "metrics.jsonl", snapshot.objective, reported)
    last = max(reported, default=None)
    complete = last is None or len(rows[last]) > 2
    final = _numbers(trial.user_attrs.get(METRICS) or {})
    curve = {step_of(snapshot, rung): _numbers(rows[rung]) for rung in sorted(reported)}
    shown = curve[step_of(snapshot, last)] if last is not None else {}
    run = TrackedRun(
        study=snapshot.name,
        uid=snapshot.uid,
        number=trial.number,
        objective=snapshot.objective,
        status=trial_status(snapshot, trial),
        state=trial.state,
        started=trial.started,
        ended=trial.ended,
        params=_params(snapshot, trial),
        tags=_tags(snapshot, trial),
        curve=curve,
        result={key: value for key, value in final.items() if key not in shown} if trial.state in ENDED else {},
    )
    return run, complete


def step_of(snapshot: Snapshot, rung: int) -> int:
    """Return the step of a rung in trackers: tokens of the GPT trainer, steps of a command, otherwise the rung.

    It is the mark of the rung, which is the same for all trials, and which every machine knows.
    """
    if snapshot.rung_tokens:
        return round(rung * snapshot.rung_tokens)
    last = (snapshot.spec.get("steps") or {}).get("last")
    return round(rung * last / snapshot.rungs) if last and last >= snapshot.rungs else rung


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row by dotted name, without the number of the rung."""
    numbers = {key: value for key, value in flatten(row).items() if isinstance(value, int | float) and key != "rung"}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


def _params(snapshot: Snapshot, trial: Trial) -> dict[str, Any]:
    """Return the value of each field in which trials of the study differ, with the base's where a trial sets none."""
    spec, attrs = snapshot.spec, trial.user_attrs
    given = {**trial.params, **(attrs.get(FIXED_VALUES) or {})}
    base = flatten(spec["base"])
    varied = [*(spec.get("space") or {}), *(key for arm in (spec.get("arms") or {}).values() for key in arm), *given]
    params = {path: given.get(path, base.get(path)) for path in dict.fromkeys(varied)}
    seed = {} if any(path in ("seed", "run.seed") for path in params) or SEED not in attrs else {SEED: attrs[SEED]}
    return {path: value for path, value in (params | seed).items() if value is not None}


def _tags(snapshot: Snapshot, trial: Trial) -> dict[str, str]:
    """Return what a tracker can filter by, as text."""
    attrs, about = trial.user_attrs, snapshot.spec.get("about") or {}
    tags: dict[str, Any] = {"study": snapshot.name, "trial": trial.number, "kind": attrs.get("kind", "search")}
    suggested = attrs.get(SUGGESTED_BY) or {}
    tags |= {"suggested_by": suggested.get("by"), "retry_of": suggested.get("of") if RETRIED in attrs else None}
    tags |= {"arm": attrs.get(ARM), "note": attrs.get(NOTE)}
    tags |= {key: about[key] for key in ABOUT if isinstance(about.get(key), str)}
    return {key: str(value) for key, value in tags.items() if value is not None}

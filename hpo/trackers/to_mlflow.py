"""Write runs to an MLflow tracking server, or to the local store of MLflow.

The server is the truth: a run is found by its tags, and its curve continues after the last step that the server has. So
any machine can continue, and no point is written twice.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient, get_tracking_uri
from mlflow.entities import Metric, Param, RunTag, ViewType

from hpo.storage.trials import State
from hpo.trackers.runs import TrackedRun
from hpo.trackers.tracker import Tracker

# MLflow waits for minutes by default. A shorter wait lets the user see soon that a server does not answer.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}

UID, TRIAL, STATUS = "hpo.study_uid", "hpo.trial", "hpo.status"  # tags by which a run is found
STATES = {State.COMPLETE: "FINISHED", State.PRUNED: "KILLED", State.FAIL: "FAILED", State.WAITING: "SCHEDULED"}
ENDED = ("FINISHED", "KILLED", "FAILED")
MOST_PARAMS, MOST_METRICS, LONGEST = 100, 1000, 500  # limits of one request, and of a value in older servers
_NOT_IN_NAMES = re.compile(r"[^\w\-./ ]", re.ASCII)


@dataclass
class _Written:
    """What the server has of a run."""

    run_id: str
    step: int
    tags: Mapping[str, str]


class MlflowTracker(Tracker):
    """Writes the trials of a study as runs of one experiment, which has the name of the study."""

    def __init__(self, study: str, uid: str) -> None:
        """Find or create the experiment of $MLFLOW_EXPERIMENT_ID, of $MLFLOW_EXPERIMENT_NAME or of the study."""
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        self._client, self._uid = MlflowClient(), uid or study
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._find_experiment(
            os.environ.get("MLFLOW_EXPERIMENT_NAME") or study
        )
        self.place = f"{_without_password(get_tracking_uri())}, experiment {self._experiment}"
        self._written: dict[int, _Written] = {}

    def _find_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def ended(self) -> set[int]:
        """Return the trials that the server has to their end."""
        return {int(run.data.tags[TRIAL]) for run in self._runs() if run.info.status in ENDED}

    def _runs(self, more: str = "") -> Iterator[Any]:
        """Yield the runs of the study that the server has."""
        query, token = f"tags.`{UID}` = '{self._uid}'{more}", None
        while True:
            page = self._client.search_runs([self._experiment], query, ViewType.ACTIVE_ONLY, 1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def write(self, run: TrackedRun) -> None:
        """Write what is new of a run."""
        # If a request fails, the server may have executed it: the next call asks the server what it has.
        written = self._written.pop(run.number, None) or self._open(run)
        points = [point for step, metrics in run.points_after(written.step) for point in _metrics(run, step, metrics)]
        for start in range(0, len(points), MOST_METRICS):
            self._client.log_batch(written.run_id, metrics=points[start : start + MOST_METRICS])
        written.step = max(written.step, run.last_step)
        if run.has_ended:
            self._client.log_batch(written.run_id, metrics=_metrics(run, run.last_step, run.result))
        self._set_tags(written, run)
        status, ended = STATES.get(run.state, "RUNNING"), None
        if run.has_ended:
            ended = _milliseconds(run.ended)
            status = "KILLED" if run.status == "killed" else status
        if run.has_ended or status != "RUNNING":
            self._client.set_terminated(written.run_id, status, ended)
        else:
            self._client.update_run(written.run_id, status)
        self._written[run.number] = written

    def _open(self, run: TrackedRun) -> _Written:
        """Find or create the run of a trial."""
        found = next(self._runs(f" and tags.`{TRIAL}` = '{run.number}'"), None)
        if found is None:
            tags = {UID: self._uid, TRIAL: str(run.number), "mlflow.user": os.environ.get("USER", "hpo")}
            tags |= {"mlflow.source.name": "hpo", "mlflow.source.type": "LOCAL"}
            found = self._client.create_run(self._experiment, _milliseconds(run.started), tags, run.name)
        run_id = found.info.run_id
        texts = {_name(key): _text(value)[:LONGEST] for key, value in run.params.items()}
        if params := [Param(key, text) for key, text in texts.items() if key not in found.data.params]:
            for start in range(0, len(params), MOST_PARAMS):
                self._client.log_batch(run_id, params=params[start : start + MOST_PARAMS])
        steps = [metric.step for metric in self._client.get_metric_history(run_id, _name(run.objective))]
        return _Written(run_id, max(steps, default=-1), found.data.tags)

    def _set_tags(self, written: _Written, run: TrackedRun) -> None:
        tags = {f"hpo.{key}": value for key, value in run.tags.items()} | {STATUS: run.status}
        if changed := [RunTag(_name(k), v[:LONGEST]) for k, v in tags.items() if written.tags.get(k) != v[:LONGEST]]:
            self._client.log_batch(written.run_id, tags=changed)
        written.tags = {key: value[:LONGEST] for key, value in tags.items()}

    def close(self) -> None:
        """Do nothing: nothing is buffered."""


def _metrics(run: TrackedRun, step: int, metrics: Mapping[str, float]) -> list[Metric]:
    at = run.seconds(step)
    timestamp = _milliseconds(run.started) if at is None else round(1000 * at)
    return [Metric(_name(key), value, timestamp, step) for key, value in metrics.items()]


def _milliseconds(time: Any) -> int:
    return 0 if time is None else round(1000 * time.timestamp())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name(key: str) -> str:
    """Return a name that MLflow accepts."""
    return _NOT_IN_NAMES.sub("_", key)[:250]


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)

"""Publish a report in Optuna's dashboard: a note, figures, and files attached to the study and its best trials.

Everything is stored in the format of optuna-dashboard. Publishing the same report again changes nothing.
"""

import io
import json
import mimetypes
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from hpo.analysis.snapshot import Snapshot
from hpo.console import printable
from hpo.optuna_internals.objects import get_study_system_attrs, set_study_system_attr
from hpo.optuna_internals.tables import STUDY_ARTIFACT_PREFIX, figure_prefix, trial_artifact_prefix
from hpo.report import importance
from hpo.report.curve_figures import arms_figure, curves_figure, history_figure
from hpo.report.importance_figures import importance_by_rung_figure
from hpo.report.verdict import Verdict
from hpo.runs.artifacts import ArtifactFolder, is_artifact_id
from hpo.runs.run_dir import artifact_folder, study_folder, trial_folder
from hpo.search.study_view import experimental
from hpo.storage.store import open_store

HEADING = "# Report by `hpo report`"  # the text above it in the note is the user's
OLD_HEADING = "# What `hpo report` says"  # of 0.1
MAX_CURVES = 60  # a figure is stored in pieces of 2,045 characters, each a row of the database
MAX_MARKS = 150
N_BEST = 3  # trials whose files are attached
FILES = ("config.yaml", "metrics.jsonl")


def publish_report(storage: str, snapshot: Snapshot, verdict: Verdict, out: Path, page: str) -> None:
    """Save a report to its study; out: the folder of the runs. page: the HTML page."""
    with open_store(storage) as store:
        study = optuna.load_study(study_name=snapshot.name, storage=store.optuna)
        with experimental():
            _save_note(study, note_markdown(verdict))
            for name, figure in dashboard_figures(snapshot).items():
                _save_figure(study, name, figure)
        _attach_files(study, snapshot, out, page)


def note_markdown(verdict: Verdict) -> str:
    """Return a verdict as Markdown."""
    lines = [HEADING, "", f"**{_escape(verdict.headline)}**", "", *(f"* {_escape(line)}" for line in verdict.grounds)]
    if verdict.warnings:
        lines += ["", "Notes:", "", *(f"* {_escape(line)}" for line in verdict.warnings)]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Return text that Markdown and HTML show unchanged, except that text between back ticks is code."""
    parts = printable(text).split("`")
    if len(parts) % 2 == 0:
        return _escape_markup(text.replace("`", "'"))
    return "`".join(part if i % 2 else _escape_markup(part) for i, part in enumerate(parts))


def _escape_markup(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\*_[]<>#|!&~" else character for character in printable(text))


def dashboard_figures(snapshot: Snapshot) -> dict[str, go.Figure]:
    """Return the figures to show, by the name under which each replaces its previous version."""
    if snapshot.spec.get("arms"):
        return {"hpo-arms": _titled(arms_figure(snapshot)[0], "Arms: mean and standard deviation")}
    figures = {
        "hpo-curves": _titled(curves_figure(snapshot, MAX_CURVES)[0], "Learning curves and noise of the baseline"),
        "hpo-history": _titled(history_figure(snapshot, MAX_MARKS)[0], "Best value so far"),
    }
    if by_rung := importance.importances_by_rung(snapshot):
        figures["hpo-importance"] = _titled(importance_by_rung_figure(snapshot, by_rung), "Importance at each rung")
    return figures


def _titled(figure: go.Figure, title: str) -> go.Figure:
    """Return a figure laid out for the dashboard: with a title, the size of its card, and the legend below."""
    figure.update_layout(title={"text": title, "x": 0, "xref": "paper", "font": {"size": 15}}, width=None, height=None)
    figure.update_layout(margin={"t": 60, "b": 110}, legend={"y": -0.25, "yanchor": "top"})
    return figure


def _save_note(study: optuna.Study, report: str) -> None:
    """Replace the report in the note of a study, and keep the user's text above it."""
    note = get_note(study)
    own = note.partition(HEADING)[0].partition(OLD_HEADING)[0].rstrip()
    updated = f"{own}\n\n{report}" if own else report
    if updated != note:
        save_note(study, updated)


def _save_figure(study: optuna.Study, name: str, figure: go.Figure) -> None:
    prefix = figure_prefix(name)
    attrs = get_study_system_attrs(study)
    pieces = [attrs[f"{prefix}{i}"] for i in range(sum(key.startswith(prefix) for key in attrs))]
    if "".join(pieces) != figure.to_json():
        save_plotly_graph_object(study, figure, graph_object_id=name)


def _attach_files(study: optuna.Study, snapshot: Snapshot, out: Path, page: str) -> None:
    """Attach the page to the study, and configuration and curves to its best trials."""
    artifact_folder(out).mkdir(parents=True, exist_ok=True)
    files = ArtifactFolder(artifact_folder(out))
    _attach(study, files, STUDY_ARTIFACT_PREFIX, "report.html", page.encode())
    folder = study_folder(out, snapshot.first_name, snapshot.uid)
    for trial in sorted(snapshot.feasible, key=snapshot.loss)[:N_BEST]:
        # In an attribute of the study, which the dashboard reads too: Optuna refuses to write to a finished trial.
        prefix = trial_artifact_prefix(trial.user_attrs.trial_id)
        for name in FILES:
            path = trial_folder(folder, trial.number) / name
            if path.is_file():
                _attach(study, files, prefix, name, path.read_bytes())


def _attach(study: optuna.Study, files: ArtifactFolder, prefix: str, name: str, content: bytes) -> None:
    """Store a file as an artifact, under its existing id if it has one."""
    attrs = get_study_system_attrs(study)
    artifact_id = _artifact_id(attrs, prefix, name) or str(uuid.uuid4())
    if _content(files, artifact_id) != content:
        files.write(artifact_id, io.BytesIO(content))
    if prefix + artifact_id not in attrs:
        kind = mimetypes.guess_type(name)[0] or "text/plain"
        meta = {"artifact_id": artifact_id, "filename": name, "mimetype": kind, "encoding": None}
        set_study_system_attr(study, prefix + artifact_id, json.dumps(meta))


def _artifact_id(attrs: Mapping[str, Any], prefix: str, name: str) -> str | None:
    for key, value in attrs.items():
        meta = json.loads(value) if key.startswith(prefix) else None  # null if deleted in the dashboard
        if isinstance(meta, dict) and meta.get("filename") == name and is_artifact_id(meta.get("artifact_id")):
            return str(meta["artifact_id"])
    return None


def _content(files: ArtifactFolder, artifact_id: str) -> bytes | None:
    try:
        with files.open_reader(artifact_id) as file:
            return bytes(file.read())
    except ArtifactNotFound:
        return None

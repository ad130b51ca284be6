"""What Optuna's dashboard shows of a report: a note, figures, and files beside the study and its best trials.

All of it is kept as optuna-dashboard keeps what its own users save; showing the same again changes nothing.
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
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from hpo.analysis.snapshot import Snapshot
from hpo.optuna_internals import (
    STUDY_ARTIFACT_PREFIX,
    figure_prefix,
    get_study_system_attrs,
    set_study_system_attr,
    trial_artifact_prefix,
)
from hpo.report import importance
from hpo.report.curve_figures import arms_figure, curves_figure, history_figure
from hpo.report.space_figures import importance_by_rung_figure
from hpo.report.verdict import Verdict
from hpo.runs.run_dir import artifact_folder, trial_folder
from hpo.search.study_view import experimental
from hpo.storage.store import open_store

HEADING = "# What `hpo report` says"  # what stands above it in the note is the user's own
SHOWN_CURVES = 60  # a figure is stored in pieces of 2,045 letters, each of them a row
SHOWN_MARKS = 150
BEST = 3  # trials whose files are attached
FILES = ("config.yaml", "metrics.jsonl")


def publish_report(storage: str, snapshot: Snapshot, found: Verdict, out: Path, page: str) -> None:
    """Save a report to its study."""
    with open_store(storage) as store:
        study = optuna.load_study(study_name=snapshot.name, storage=store.optuna)
        with experimental():
            _note(study, note_markdown(found))
            for name, figure in dashboard_figures(snapshot).items():
                _figure(study, name, figure)
        _attach(study, snapshot, out, page)


def note_markdown(found: Verdict) -> str:
    """Return a verdict as Markdown."""
    lines = [HEADING, "", f"**{_plain(found.headline)}**", "", *(f"* {_plain(line)}" for line in found.grounds)]
    if found.caveats:
        lines += ["", "To be kept in mind:", "", *(f"* {_plain(line)}" for line in found.caveats)]
    return "\n".join(lines) + "\n"


def _plain(words: str) -> str:
    """Return text with nothing that Markdown or HTML would read otherwise, code aside."""
    parts = words.split("`")
    if len(parts) % 2 == 0:
        return _escaped(words.replace("`", "'"))
    return "`".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(words: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\*_[]<>#|" else letter for letter in words)


def dashboard_figures(snapshot: Snapshot) -> dict[str, go.Figure]:
    """Return the figures that are shown, by the name under which each replaces its last version."""
    if snapshot.spec.get("arms"):
        return {"hpo-arms": _titled(arms_figure(snapshot)[0], "Arms: mean and standard deviation")}
    found = {
        "hpo-curves": _titled(curves_figure(snapshot, SHOWN_CURVES)[0], "Curves, with the noise of the baseline"),
        "hpo-history": _titled(history_figure(snapshot, SHOWN_MARKS)[0], "Best so far"),
    }
    if rungs := importance.importances_by_rung(snapshot):
        found["hpo-importance"] = _titled(importance_by_rung_figure(snapshot, rungs), "Importance, rung by rung")
    return found


def _titled(figure: go.Figure, title: str) -> go.Figure:
    """Return a figure as a card of the dashboard: as wide and as high as its place, named, its legend below."""
    figure.update_layout(title={"text": title, "x": 0, "xref": "paper", "font": {"size": 15}}, width=None, height=None)
    figure.update_layout(margin={"t": 60, "b": 110}, legend={"y": -0.25, "yanchor": "top"})
    return figure


def _note(study: optuna.Study, ours: str) -> None:
    there = get_note(study)
    theirs = there.partition(HEADING)[0].rstrip()
    whole = f"{theirs}\n\n{ours}" if theirs else ours
    if whole != there:
        save_note(study, whole)


def _figure(study: optuna.Study, name: str, figure: go.Figure) -> None:
    prefix = figure_prefix(name)
    attrs = get_study_system_attrs(study)
    there = [attrs[f"{prefix}{i}"] for i in range(sum(key.startswith(prefix) for key in attrs))]
    if "".join(there) != figure.to_json():
        save_plotly_graph_object(study, figure, graph_object_id=name)


def _attach(study: optuna.Study, snapshot: Snapshot, out: Path, page: str) -> None:
    """Keep the page beside the study, and configuration and curves beside its best trials."""
    artifact_folder(out).mkdir(parents=True, exist_ok=True)
    files = FileSystemArtifactStore(artifact_folder(out))
    _keep(study, files, STUDY_ARTIFACT_PREFIX, "report.html", page.encode())
    for trial in sorted(snapshot.feasible, key=lambda t: t.values[0])[:BEST]:
        # Beside the study, where the dashboard looks too: Optuna lets nobody write to a trial that has ended.
        prefix = trial_artifact_prefix(trial.user_attrs.trial_id)
        for name in FILES:
            path = trial_folder(out, snapshot.name, trial.number) / name
            if path.is_file():
                _keep(study, files, prefix, name, path.read_bytes())


def _keep(study: optuna.Study, files: FileSystemArtifactStore, prefix: str, name: str, content: bytes) -> None:
    """Keep a file under the number that it has, or a new one."""
    attrs = get_study_system_attrs(study)
    artifact_id = _known(attrs, prefix, name) or str(uuid.uuid4())
    if _content(files, artifact_id) != content:
        files.write(artifact_id, io.BytesIO(content))
    if prefix + artifact_id not in attrs:
        kind = mimetypes.guess_type(name)[0] or "text/plain"
        meta = {"artifact_id": artifact_id, "filename": name, "mimetype": kind, "encoding": None}
        set_study_system_attr(study, prefix + artifact_id, json.dumps(meta))


def _known(attrs: Mapping[str, Any], prefix: str, name: str) -> str | None:
    for key, value in attrs.items():
        held = json.loads(value) if key.startswith(prefix) else None  # null: deleted in the dashboard
        if held and held["filename"] == name:
            return str(held["artifact_id"])
    return None


def _content(files: FileSystemArtifactStore, artifact_id: str) -> bytes | None:
    try:
        with files.open_reader(artifact_id) as file:
            return bytes(file.read())
    except ArtifactNotFound:
        return None

"""`hpo report`: write the results of a study as an HTML or PDF page, as CSV and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from hpo.analysis.front import front_records
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.console import printable
from hpo.errors import NothingFeasible, StorageError
from hpo.evidence.verify import VERIFIES
from hpo.report import appendix, sections
from hpo.report.arms import arms_section
from hpo.report.coordinates import coordinates_section
from hpo.report.front import front_section
from hpo.report.html import html_page, paragraph
from hpo.report.pdf import write_pdf
from hpo.report.risk import risk_section
from hpo.report.summary_page import summary_page
from hpo.report.tables import curves_path, write_csv, write_json
from hpo.report.transfer import LadderResult, ladder_results, transfer_section
from hpo.report.verdict import RelatedStudy, Verdict, related_studies, verdict
from hpo.runs.run_dir import study_folder, write_file
from hpo.storage.attributes import COORDINATES, LADDER_OF
from hpo.storage.engine import open_readonly
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.storage.trials import State


@dataclass(frozen=True)
class ReportFiles:
    """The files to write; if all are None, the HTML page goes into the folder of the study."""

    html: Path | None = None
    pdf: Path | None = None
    csv: Path | None = None
    json: Path | None = None


@dataclass(frozen=True)
class ReportData:
    """A study, its verdict, the studies that confirm or ablate it, its ladders, and its coordinate check."""

    snapshot: Snapshot
    verdict: Verdict
    confirmations: Sequence[RelatedStudy]
    ablations: Sequence[RelatedStudy]
    ladders: Sequence[LadderResult] = ()
    coordinates: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written. notes: what could not be done beside it."""

    verdict: Verdict
    paths: Sequence[Path]
    notes: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Return a line for each file and each note."""
        return [*(f"{path}: written" for path in self.paths), *(f"note: {note}" for note in self.notes)]


def write_report(storage: str, name: str | None, out: Path, files: ReportFiles, publish: bool) -> WrittenReport:
    """Write the report of a study, and show the report in the dashboard.

    name: None for the only study of the storage. out: the folder of the runs. publish: whether to save note, figures
    and files to the study, where the dashboard shows them.

    Raises:
        NothingFeasible: no trial has ended.
    """
    with open_readonly(storage) as store:
        data = read_report(store, name)
        if files == ReportFiles():
            folder = study_folder(out, data.snapshot.first_name, data.snapshot.uid)
            files = ReportFiles(html=folder / "report.html")
        page = report_page(data, out)
        if files.html:
            write_file(files.html, page)
        if files.pdf:
            write_pdf(page, files.pdf)
        if files.csv:
            write_csv(data.snapshot, files.csv)
        if files.json:
            write_json(data.snapshot, files.json, _json_fields(data))
        written = (files.html, files.pdf, files.csv, files.csv and curves_path(files.csv), files.json)
        notes = []
        if publish:
            from hpo.report.publish import publish_report

            try:
                publish_report(storage, data.snapshot, data.verdict, out, page)
            except (StorageError, OSError) as error:  # for example on a read-only mount
                notes.append(f"the dashboard does not show the report: {error}")
        return WrittenReport(data.verdict, [path for path in written if path], notes)


def read_report(store: OpenStorage, name: str | None) -> ReportData:
    """Read a study and the studies that confirm or ablate it.

    Raises:
        NothingFeasible: no trial has ended.
    """
    snapshot = read_snapshot(store, name)
    if not snapshot.in_state(State.COMPLETE, State.PRUNED, State.FAIL):
        raise NothingFeasible(f"study {snapshot.name}: no trial is complete yet; `hpo status` shows the progress")
    confirmations, ablations = (related_studies(store, snapshot.names, key) for key in ("confirms", "ablates"))
    ladders = ladder_results(store, snapshot)
    coordinates = study_attrs(store, study_ids(store)[snapshot.name]).get(COORDINATES)
    return ReportData(snapshot, verdict(snapshot, confirmations), confirmations, ablations, ladders, coordinates)


def report_page(data: ReportData, out: Path) -> str:
    """Return the report as one HTML page."""
    snapshot = data.snapshot
    time = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    body = [
        f"<h1>{escape(printable(snapshot.name))}</h1>\n",
        paragraph(f"{_purpose(snapshot)}Report of {time}.", "small"),
    ]
    body.append(summary_page(snapshot, data.verdict))
    body += arms_section(snapshot, data.confirmations, data.ablations)
    body += transfer_section(data.ladders)
    body += coordinates_section(data.coordinates)
    body += front_section(snapshot)
    body += sections.progress_section(snapshot)
    body += risk_section(snapshot)
    body += sections.hyperparameters_section(snapshot, out)
    body += appendix.trials_section(snapshot)
    body += appendix.workers_section(snapshot)
    body += appendix.reproduce_section(snapshot, [*data.confirmations, *data.ablations])
    return html_page(f"{snapshot.name}: report", "".join(body))


def _purpose(snapshot: Snapshot) -> str:
    """Return the study that a confirmation or ablation belongs to as a sentence, "" for a search."""
    about = snapshot.spec.get("about") or {}
    titles = {"confirms": "Confirmation", "ablates": "Ablation", LADDER_OF: "Ladder", VERIFIES: "Verification"}
    return "".join(f"{title} of study {about[key]}. " for key, title in titles.items() if key in about)


def _json_fields(data: ReportData) -> dict[str, Any]:
    """Return the results of the report as `--json` writes them beside trials and curves."""
    floor = data.snapshot.noise
    return {
        "objective": data.snapshot.objective,
        **({"front": records} if (records := front_records(data.snapshot)) else {}),
        "verdict": data.verdict.record(),
        "noise": floor and {"n": floor.n, "mean": floor.mean, "sigma": floor.sigma, "curve": floor.curve},
        "confirmed": [{"study": study.snapshot.name, "table": list(study.table)} for study in data.confirmations],
        "ablated": [{"study": study.snapshot.name, "table": list(study.table)} for study in data.ablations],
    }

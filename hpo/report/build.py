"""hpo report: a study as one page that argues: what was found, how far to believe it, and how to repeat it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.console import say
from hpo.errors import NothingFeasible
from hpo.report import appendix, sections
from hpo.report.html import html_page, paragraph
from hpo.report.pdf import write_pdf
from hpo.report.tables import curves_path, write_csv, write_json
from hpo.report.verdict import Related, Verdict, related_studies, verdict
from hpo.runs.run_dir import study_folder, write_file
from hpo.storage.engine import open_readonly
from hpo.storage.retry import OpenStorage
from hpo.storage.trials import State


@dataclass(frozen=True)
class Files:
    """What to write, and where; all None: the page, into the study's folder."""

    html: Path | None = None
    pdf: Path | None = None
    csv: Path | None = None
    json: Path | None = None


@dataclass(frozen=True)
class ReportData:
    """All that a report of a study says."""

    snapshot: Snapshot
    verdict: Verdict
    confirmed: Sequence[Related]
    ablated: Sequence[Related]


def write_report(storage: str, name: str | None, out: Path, files: Files, publish: bool) -> None:
    """Write what was asked for, say where, and show the same in the dashboard.

    Raises:
        NothingFeasible: no trial has ended.
    """
    with open_readonly(storage) as store:
        found = read_report(store, name)
        folder = study_folder(out, found.snapshot.name)
        where = files if any(asdict(files).values()) else Files(html=folder / "report.html")
        made = report_page(found, out)
        if where.html:
            write_file(where.html, made)
        if where.pdf:
            write_pdf(made, where.pdf)
        if where.csv:
            write_csv(found.snapshot, where.csv)
        if where.json:
            write_json(found.snapshot, where.json, _json_fields(found))
        written = (where.html, where.pdf, where.csv, where.csv and curves_path(where.csv), where.json)
        say("\n".join(f"{path}: written" for path in written if path))
        if publish:
            from hpo.report.publish import publish_report

            publish_report(storage, found.snapshot, found.verdict, out, made)


def read_report(store: OpenStorage, name: str | None) -> ReportData:
    """Read a study and those that were made for it.

    Raises:
        NothingFeasible: no trial has ended.
    """
    snapshot = read_snapshot(store, name)
    if not snapshot.in_state(State.COMPLETE, State.PRUNED, State.FAIL):
        raise NothingFeasible(f"study {snapshot.name}: no trial is complete yet; `hpo status` shows the progress")
    confirmed, ablated = (related_studies(store, snapshot.name, key) for key in ("confirms", "ablates"))
    return ReportData(snapshot, verdict(snapshot, confirmed), confirmed, ablated)


def report_page(found: ReportData, out: Path) -> str:
    """Return the page."""
    of = found.snapshot
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    body = [f"<h1>{escape(of.name)}</h1>\n", paragraph(f"{_about(of)}Report of {made}.", "small")]
    body.append(sections.summary_section(of, found.verdict))
    body += sections.arms_section(of, found.confirmed, found.ablated)
    body += sections.curves_section(of)
    body += sections.hyperparameters_section(of, out)
    body += appendix.trials_section(of)
    body += appendix.workers_section(of)
    body += appendix.origin_section(of, [*found.confirmed, *found.ablated])
    return html_page(f"{of.name}: report", "".join(body))


def _about(snapshot: Snapshot) -> str:
    """Return what a study was made for, "" for a search."""
    about = snapshot.spec.get("about") or {}
    words = {"confirms": "Confirms", "ablates": "Takes apart"}
    return "".join(f"{word} {about[key]}. " for key, word in words.items() if key in about)


def _json_fields(found: ReportData) -> dict[str, Any]:
    floor = found.snapshot.noise
    return {
        "objective": found.snapshot.objective,
        "verdict": asdict(found.verdict),
        "noise": {"n": floor.n, "mean": floor.mean, "sigma": floor.sigma, "curve": floor.curve} if floor else None,
        "confirmed": [{"study": one.snapshot.name, "table": list(one.table)} for one in found.confirmed],
        "ablated": [{"study": one.snapshot.name, "table": list(one.table)} for one in found.ablated],
    }

"""The first page of a report: verdict, main results, the best configuration, and the learning curves."""

import math
import re

from hpo.analysis.snapshot import Snapshot
from hpo.report import sections
from hpo.report.html import bullets, heading, html_table, page, paragraph
from hpo.report.verdict import Verdict
from hpo.storage.attributes import FIXED_VALUES
from model.section import flatten

PAGE = 1000  # pixels, the height of an A4 page without its margins
LINE, CHARACTERS = 18, 104  # height of a line of text, and its characters
ROW = 25  # height of a row of a table
TITLE, CAPTION = 80, 190  # height of the title of the page, and of heading and caption of the figure
SMALLEST, LARGEST = 220, 420  # height of the figure; in a lower one, curves cannot be told apart
MAX_FIELDS = 8  # rows of the table of the best configuration


def summary_page(snapshot: Snapshot, verdict: Verdict) -> str:
    """Return the summary, which fills one printed page: the figure has the height that the text leaves.

    Notes that do not fit follow on the next page, and so does the figure.
    """
    text, notes = sections.summary_section(snapshot, verdict) + _best_fields(snapshot), ""
    if verdict.warnings:
        notes = paragraph("Notes:", "lead-in") + bullets(verdict.warnings)
    for shown, later in ((text + notes, ""), (text, heading("Notes") + notes)):
        room = PAGE - TITLE - CAPTION - printed_height(shown)
        if room >= SMALLEST:
            return page(shown + "".join(sections.curves_section(snapshot, min(room, LARGEST)))) + later
    curves = "".join(sections.curves_section(snapshot))
    if PAGE - TITLE - printed_height(text + notes) >= 0:
        return page(text + notes) + curves
    return page(text) + heading("Notes") + notes + curves


def printed_height(body: str) -> int:
    """Return an estimate of the height of paragraphs, lists and tables in print."""
    height = 0
    for kind, content in re.findall(r"<(p|li|tr)\b[^>]*>(.*?)</\1>", body, re.DOTALL):
        characters = len(re.sub(r"<[^>]*>", "", content))
        lines = max(1, math.ceil(characters / CHARACTERS))
        height += lines * ROW if kind == "tr" else lines * LINE + 4
    return height


def _best_fields(snapshot: Snapshot) -> str:
    """Return a table of the fields in which the best trial differs from the base configuration."""
    best = snapshot.best()
    if best is None or snapshot.spec.get("arms"):
        return ""
    base = flatten(snapshot.spec["base"])
    values = best.user_attrs.get(FIXED_VALUES) or best.params
    changed = [{"field": k, "base": base.get(k), "best": v} for k, v in values.items() if base.get(k) != v]
    if not changed:
        return ""
    more = f" The first {MAX_FIELDS} of {len(changed)}." if len(changed) > MAX_FIELDS else ""
    text = f"Fields of the best trial, {best.number}, that differ from the base configuration:{more}"
    return paragraph(text, "lead-in") + html_table(changed[:MAX_FIELDS])

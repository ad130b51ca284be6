"""The first page of a report is a summary that fills one printed page."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hpo.report.summary_page import CAPTION, LARGEST, PAGE, SMALLEST, TITLE, printed_height, summary_page
from hpo.report.verdict import verdict
from hpo.storage.store import open_store
from tests.support.comparisons import run_search

pytestmark = pytest.mark.usefixtures("here")


def test_summary_is_one_page_with_verdict_configuration_and_curves(here: Path) -> None:
    with open_store("runs/hpo.db", create=True) as store:
        snapshot = run_search(store, here, {}, budget={"trials": 6}, baseline_seeds=2)
        short = verdict(snapshot)
        long = replace(short, grounds=["A ground. " * 15] * 9)
        longest = replace(long, warnings=["A warning. " * 15] * 20)
        pages = [summary_page(snapshot, found) for found in (short, long, longest)]
    for html in pages:
        first, rest = html.split("</section>")
        assert first.startswith('<section class="page">')
        assert short.headline.split(":")[0] in first
        assert "differ from the base configuration" in first
        drawn = 'id="curves"' in first
        height = int(re.findall(r'"height":(\d+)', first)[0]) if drawn else 0
        assert not drawn or SMALLEST <= height <= LARGEST
        used = TITLE + printed_height(first.split("<figure>")[0]) + drawn * (height + CAPTION)
        assert used <= PAGE + 30
        assert drawn != ('id="curves"' in rest)
    assert 'id="curves"' in pages[0].split("</section>")[0]
    assert "Notes" in pages[2].split("</section>")[1]

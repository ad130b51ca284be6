"""The section of a report on arms: tables of a comparison, and of the studies that confirm or ablate a search."""

from collections.abc import Iterator, Sequence

from hpo.analysis.snapshot import Snapshot
from hpo.analysis.statistics import LEVEL
from hpo.evidence.paired import scope_note
from hpo.report.html import bullets, heading, html_table, paragraph
from hpo.report.verdict import RelatedStudy, own_comparison
from hpo.study.sequential import KEY

LABEL_NOTE = (
    "Effect of each change at the cells of the ladder, with its 90 % interval. scale-stable: the same sign at all "
    "cells, and at least half of the effect is left at the largest. scale-bound: most of the effect is lost, or its "
    "sign changes. undecided: the ladder does not vary the field, or cannot tell."
)


def arms_section(
    snapshot: Snapshot, confirmations: Sequence[RelatedStudy], ablations: Sequence[RelatedStudy]
) -> Iterator[str]:
    """Yield the tables of arms: those of the study itself, and of the studies that confirm or ablate it."""
    if snapshot.spec.get("arms"):
        yield heading("Arms")
        yield html_table(own_comparison(snapshot).table)
        note = "difference: the arm minus the first arm, over pairs of runs with the same seed. low, high: its "
        note += f"{LEVEL:.0%} confidence interval. p: p-value of no difference in a paired test, corrected for the "
        yield paragraph(note + "number of arms by Holm's method.", "small")
    for title, studies in (("Confirmation", confirmations), ("Ablation", ablations)):
        for study in studies:
            yield heading(f"{title}: {study.snapshot.name}")
            yield bullets(study.verdicts) + html_table(study.table)
            yield paragraph(_comparison_note(study.snapshot), "small")
            if study.labels:
                yield html_table([{"change": n, "label": o.label, **o.effects} for n, o in study.labels.items()])
                yield paragraph(LABEL_NOTE, "small")


def _comparison_note(snapshot: Snapshot) -> str:
    seeds = snapshot.spec["seeds"]
    at_most = "At most " if KEY in snapshot.spec["about"] else ""
    note = (
        f"{at_most}{len(seeds)} seeds ({seeds[0]} to {seeds[-1]}) that the search did not use. Runs with the same seed "
    )
    note += "have the same initial weights and batches, and are compared in pairs."
    note += " search: the value in the search." if "confirms" in snapshot.spec["about"] else ""
    if at_most:
        note += " The result was tested after each pair from the third on, with bounds for one-sided t tests that hold "
        note += "for all these tests together. p-values are doubled, so that 0.05 is the level as for two-sided tests. "
        note += "After an early stop, the difference is larger than the true one on average."
    return f"{note} The {scope_note(snapshot)}."

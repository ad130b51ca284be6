"""The sections of a report: each a heading, figures or tables, and how to read them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpo.analysis.noise import decimals
from hpo.analysis.snapshot import Snapshot, token_counts, trial_counts
from hpo.analysis.statistics import LEVEL
from hpo.report import curve_figures, importance, space_figures
from hpo.report.axes import axes
from hpo.report.html import bullets, definition_table, figure_element, heading, html_table, paragraph
from hpo.report.importance import Interactions
from hpo.report.style import AnnotatedFigure, anchor_levels, objective_unit
from hpo.report.verdict import Related, Verdict, own_comparison
from hpo.storage.trials import State

SHOWN_PAIRS = 6

_SAME_BATCHES = (
    "Trials of a study see the same batches in the same order, so curves of one seed may be compared point by point."
)


def captioned(found: AnnotatedFigure, name: str, caption: str) -> str:
    """Return a figure, what it leaves out said at the end of its caption."""
    shown, told = found
    return figure_element(shown, name, " ".join([caption, *told]))


def summary_section(snapshot: Snapshot, found: Verdict) -> str:
    """Return what the study shows, before anything else."""
    n, d = trial_counts(snapshot), digits(snapshot)
    best, base, floor = snapshot.best(), snapshot.baseline(), snapshot.noise
    what = (
        f"{snapshot.objective}"
        + (f", in {objective_unit(snapshot)}" if objective_unit(snapshot) else "")
        + "; lower is better"
    )
    facts: dict[str, Any] = {"objective": what}
    facts["trials"] = ", ".join(f"{count:,} {state}" for state, count in n.items() if count)
    if best is not None and not snapshot.spec.get("arms"):
        facts["best"] = f"{best.values[0]:.{d}f} (trial {best.number})"
    if floor:
        facts["baseline"] = f"{floor.mean:.{d}f} ± {floor.sigma:.{d}f} (mean and σ of {floor.n} seeds)"
    elif base is not None and base.values and base.state == State.COMPLETE:
        facts["baseline"] = f"{base.values[0]:.{d}f} (trial {base.number}, one seed)"
    facts |= {f"{name} model": f"{level:.{d}f}" for name, level in anchor_levels(snapshot).items()}
    notes = paragraph("To be kept in mind:") + bullets(found.caveats) if found.caveats else ""
    return paragraph(found.headline, "lead") + bullets(found.grounds) + notes + definition_table(facts)


def digits(snapshot: Snapshot) -> int:
    """Return the decimals that the noise leaves worth printing."""
    floor = snapshot.noise
    return decimals(floor.sigma) if floor else 4


def curves_section(snapshot: Snapshot) -> Iterator[str]:
    """Yield curves, the best so far, and what pruning saved."""
    yield heading("Curves")
    if snapshot.spec.get("arms"):
        caption = (
            "The mean of each arm's runs, with one standard deviation either way; the number of runs in brackets. "
        )
        yield captioned(curve_figures.arms_figure(snapshot), "arms", caption + _anchored(snapshot))
    else:
        caption = f"{snapshot.objective} along each run. Grey: runs that ended early, pruned ones above all. " + _band(
            snapshot
        )
        yield captioned(curve_figures.curves_figure(snapshot), "curves", caption + _anchored(snapshot) + _SAME_BATCHES)
        yield heading("Best so far")
        caption = "Each dot is a finished trial, placed where it ended. "
        if snapshot.noise:
            caption += (
                "Dotted: the best that would be expected of so many runs of the baseline with another seed each. "
                "Only what lies below it is more than luck; how far below is worth believing, `hpo confirm` says."
            )
        yield captioned(curve_figures.history_figure(snapshot), "history", caption)
    if any(t.state == State.PRUNED for t in snapshot.own):
        yield heading("What pruning saved")
        told, spent = token_counts(snapshot), "rungs" if token_counts(snapshot)["trained"] is None else "tokens"
        amount = (
            f" {told['trained']:,} tokens trained, {told['saved_by_pruning']:,} saved." if spent == "tokens" else ""
        )
        caption = f"How many trials trained each stretch of a run, and how many had been stopped before it.{amount} "
        caption += "Whether a stopped trial would have won in the end is not known; baselines are never stopped."
        yield captioned(curve_figures.pruning_figure(snapshot), "saved", caption)


def _band(snapshot: Snapshot) -> str:
    floor = snapshot.noise
    if floor is None:
        return ""
    return f"Band: two standard deviations either way of the mean of the baseline's {floor.n} seeds, the noise. "


def _anchored(snapshot: Snapshot) -> str:
    if not anchor_levels(snapshot):
        return ""
    return "Dashed: what tables of single tokens (unigram) and of pairs (bigram) reach on the same text. "


def hyperparameters_section(snapshot: Snapshot, out: Path) -> Iterator[str]:
    """Yield importance, interactions, slices, contours and learning-rate curves of a search."""
    of_axes = axes(snapshot)
    if snapshot.spec.get("arms") or not of_axes:
        return
    rung, found = importance.final_importances(snapshot)
    yield heading("Which hyperparameters mattered")
    order = [w.path for w in found] + [path for path in of_axes if path not in {w.path for w in found}]
    if found:
        yield from _importance(snapshot, rung, found)
    else:
        n = len(importance.points_at_rung(snapshot, snapshot.rungs))
        yield paragraph(f"Too few trials for importances: {n} came to the last rung, {importance.FEWEST} are needed.")
    if len(of_axes) > 1:
        yield from _interactions(importance.interactions(snapshot), snapshot)
    yield heading("Slices")
    caption = "The result of each trial against each hyperparameter, on the scale that was searched; grey, trials that "
    caption += "ended early, at their last value, which is no result. A search looks more often where it found good "
    caption += "values, so a crowd is no evidence."
    for i, one in enumerate(space_figures.slice_figures(snapshot, order)):
        yield captioned(one, f"slices-{i}", caption if i == 0 else "The same for further hyperparameters.")
    yield from _contours(snapshot, order, rung)
    yield from _rates(snapshot, order, out)


def _importance(snapshot: Snapshot, rung: int, found: Sequence[importance.Importance]) -> Iterator[str]:
    n = len(importance.points_at_rung(snapshot, rung))
    caption = f"Where the better third of the {n} trials that came to rung {rung} of {snapshot.rungs} lie, compared with where all "
    caption += (
        "lie (PED-ANOVA). A mark: what a hyperparameter without effect exceeds one time in 20, from shuffled values. "
    )
    caption += (
        "Grey bars do not pass it, so nothing is shown of them, which is not to say that they do nothing. A search "
    )
    caption += "that moves several at once can make one look important by the company it keeps."
    yield figure_element(space_figures.importance_figure(found), "importance", caption)
    rungs = importance.importances_by_rung(snapshot)
    if len(rungs) > 1:
        caption = (
            "The same at each rung, of all trials that came to it, those pruned later included: what matters early "
        )
        caption += "need not matter at the end. What diverged counts as the worst."
        yield figure_element(space_figures.importance_by_rung_figure(snapshot, rungs), "importance-by-rung", caption)


def _interactions(found: Interactions, snapshot: Snapshot) -> Iterator[str]:
    if not found.pairs:
        if found.needed:
            told = f"Too few trials to test for interactions: {found.n} came to rung {found.rung}, "
            yield paragraph(f"{told}{found.needed} are needed.")
        return
    clear = [pair for pair in found.pairs if pair.p < 1 - LEVEL]
    said = f"{len(clear)} of {len(found.pairs)} pairs" if clear else f"None of the {len(found.pairs)} pairs"
    yield paragraph(
        f"Interactions: {said} of hyperparameters {'is' if len(clear) < 2 else 'are'} shown to act together."
    )
    yield html_table(
        [
            {
                "pair": f"{pair.first} × {pair.second}",
                "p, corrected": f"{pair.p:.2g}",
                "explains": f"{pair.explained:.0%}",
            }
            for pair in found.pairs[:SHOWN_PAIRS]
        ]
    )
    told = f"A linear model of all hyperparameters and their squares, on the values of {found.n} trials at rung "
    told += (
        f"{found.rung}, with and without the pair's product: F test, p-values corrected by Holm's method; explains: "
    )
    told += "the share of the variance that the model leaves without it. Trials that a search placed are no designed "
    told += "experiment: `hpo ablate` measures the effects of a configuration in pairs."
    yield paragraph(told, "small")


def _contours(snapshot: Snapshot, order: Sequence[str], rung: int) -> Iterator[str]:
    found = space_figures.contour_figures(snapshot, order, rung)
    if not found:
        return
    yield heading("Pairs")
    caption = f"{snapshot.objective} at rung {rung} over two hyperparameters, dark is better, a dot a trial; between the dots "
    caption += "linearly interpolated, so that noise looks like landscape. The worst tenth has one colour."
    for i, one in enumerate(found):
        yield captioned(one, f"contour-{i}", caption if i == 0 else "The same for another pair.")


def _rates(snapshot: Snapshot, order: Sequence[str], out: Path) -> Iterator[str]:
    curve, schedule = space_figures.lr_figure(snapshot, order), space_figures.schedule_figure(snapshot, out)
    if not curve and not schedule:
        return
    yield heading("Learning rate")
    if curve:
        caption = "The result of each finished trial against its learning rate. Colour: the most important other "
        caption += "hyperparameter, if there is one. A minimum that moves with the colour is an interaction."
        yield captioned(curve, "lr", caption)
    if schedule:
        yield captioned(schedule, "schedule", "The learning rate along the best run, at its rungs.")


def arms_section(snapshot: Snapshot, confirmed: Sequence[Related], ablated: Sequence[Related]) -> Iterator[str]:
    """Yield the tables of arms: the study's own, and those of the studies that confirm or ablate it."""
    if snapshot.spec.get("arms"):
        yield heading("Arms")
        yield html_table(own_comparison(snapshot).table)
        told = "difference: of the pairs of runs with the same seed, the arm less the first one; low and high: its "
        told += f"{LEVEL:.0%} interval; p: that there is no difference, by a paired test, corrected for "
        yield paragraph(told + "the number of arms by Holm's method.", "small")
    for title, found in (("Confirmation", confirmed), ("Ablation", ablated)):
        for one in found:
            yield heading(f"{title}: {one.snapshot.name}")
            yield bullets(one.verdicts) + html_table(one.table)
            yield paragraph(_pairs_told(one.snapshot), "small")


def _pairs_told(snapshot: Snapshot) -> str:
    seeds = snapshot.spec["seeds"]
    last = "search: the value that the search had seen." if "confirms" in snapshot.spec["about"] else ""
    told = f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]}), none of which the search used; runs of one seed share "
    return told + "initial weights and batches, and are compared in pairs. " + last

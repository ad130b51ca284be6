"""The main sections of a report: each is a heading with figures or tables and how to read them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpo.analysis.noise import baseline_text
from hpo.analysis.probes import is_probed, probe_lines
from hpo.analysis.progress import token_counts, trial_counts
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.statistics import LEVEL
from hpo.analysis.summary import objective_decimals
from hpo.console import fixed
from hpo.report import curve_figures, importance, importance_figures, lr_figures, space_figures
from hpo.report.axes import Axis, axes
from hpo.report.html import bullets, definition_table, figure_element, heading, html_table, paragraph
from hpo.report.importance import InteractionTests
from hpo.report.style import AnnotatedFigure, anchor_levels, objective_unit
from hpo.report.verdict import Verdict
from hpo.search.direction import Direction
from hpo.storage.trials import State

MAX_INTERACTIONS = 6  # rows of the table of interactions


def figure_html(figure: AnnotatedFigure, name: str, caption: str) -> str:
    """Return a figure with its caption, followed by the notes on what the figure leaves out."""
    drawing, notes = figure
    return figure_element(drawing, name, " ".join([caption, *notes]))


def summary_section(snapshot: Snapshot, verdict: Verdict) -> str:
    """Return the verdict without its warnings, and a table of the main results."""
    text = paragraph(verdict.headline, "lead") + bullets(verdict.grounds)
    return text + definition_table(_main_results(snapshot))


def _main_results(snapshot: Snapshot) -> dict[str, Any]:
    d, best, base, unit = objective_decimals(snapshot), snapshot.best(), snapshot.baseline(), objective_unit(snapshot)
    better = "lower" if snapshot.direction is Direction.MINIMIZE else "higher"
    results: dict[str, Any] = {"objective": f"{snapshot.objective}{f', in {unit}' if unit else ''}; {better} is better"}
    results["trials"] = ", ".join(f"{n:,} {state}" for state, n in trial_counts(snapshot).items() if n)
    if best is not None and not snapshot.spec.get("arms"):
        results["best"] = f"{fixed(best.values[0], d)} (trial {best.number})"
    if snapshot.noise:
        results["baseline"] = f"{baseline_text(snapshot.noise)}, mean and standard deviation"
    elif base is not None and snapshot.baseline_value is not None:
        results["baseline"] = f"{fixed(snapshot.baseline_value, d)} (trial {base.number}, one seed)"
    if probes := probe_lines(snapshot):
        results["probes"] = "; ".join(line.removeprefix("probes: ") for line in probes)
    return results | {f"{name} model": fixed(level, d) for name, level in anchor_levels(snapshot).items()}


def curves_section(snapshot: Snapshot, height: int | None = None) -> Iterator[str]:
    """Yield the learning curves; height: of the figure, None for the usual height."""
    yield heading("Learning curves")
    if snapshot.spec.get("arms"):
        caption = (
            "Mean of the runs of each arm, with one standard deviation on both sides; number of runs in brackets. "
        )
        figure, notes = curve_figures.arms_figure(snapshot)
        name, caption = "arms", caption + _anchor_note(snapshot)
    else:
        caption = f"{snapshot.objective} of each trial. Grey: trials that ended early, most of them pruned. "
        caption += (
            _noise_note(snapshot) + _anchor_note(snapshot) + "All trials of a study train on the same batches in "
        )
        caption += "the same order, so curves of one seed can be compared point by point."
        if is_probed(snapshot):
            caption += " Triangles: probes, at the tokens of the rung where they leave the run."
        figure, notes = curve_figures.curves_figure(snapshot)
        name = "curves"
    if height is not None:
        figure.update_layout(height=height)
    yield figure_html((figure, notes), name, caption)


def progress_section(snapshot: Snapshot) -> Iterator[str]:
    """Yield the best value so far, and what pruning saved."""
    if not snapshot.spec.get("arms"):
        yield from _history(snapshot)
    if any(t.state == State.PRUNED for t in snapshot.own):
        yield from _pruning(snapshot)


def _history(snapshot: Snapshot) -> Iterator[str]:
    yield heading("Best value so far")
    caption = "Each dot is a complete trial, at the time when it ended. "
    if snapshot.noise:
        caption += (
            "Dotted: the best value that as many runs of the baseline are expected to reach by chance. Only values "
        )
        caption += (
            f"{snapshot.direction.better_side} it are evidence of a gain. `hpo confirm` measures how much of the "
        )
        caption += "gain is real. Hollow circles: improvements below two sigma, which may be noise."
    yield figure_html(curve_figures.history_figure(snapshot), "history", caption)


def _pruning(snapshot: Snapshot) -> Iterator[str]:
    yield heading("Pruning")
    tokens = token_counts(snapshot)
    caption = "Number of trials that trained each stretch of a run, and number of trials stopped before it. "
    if tokens["trained"] is not None:
        probed = f" ({tokens['probes']:,} of them in probes)" if "probes" in tokens else ""
        caption += f"{tokens['trained']:,} tokens were trained{probed}, {tokens['saved_by_pruning']:,} were saved. "
    caption += "A pruned trial might have become the best at its end; baselines are never pruned."
    yield figure_html(curve_figures.pruning_figure(snapshot), "saved", caption)


def _noise_note(snapshot: Snapshot) -> str:
    floor = snapshot.noise
    if floor is None:
        return ""
    return f"Band: mean of the baseline's {floor.n} seeds, with two standard deviations on both sides. "


def _anchor_note(snapshot: Snapshot) -> str:
    if not anchor_levels(snapshot):
        return ""
    return "Dashed: loss of n-gram models on the same text. "


def hyperparameters_section(snapshot: Snapshot, out: Path) -> Iterator[str]:
    """Yield importance, interactions, slices, contours and learning-rate figures of a search.

    out: the folder of the runs, which has the learning rates of the best run.
    """
    of_axes = axes(snapshot)
    if snapshot.spec.get("arms") or not of_axes:
        return
    rung, ranked = importance.final_importances(snapshot)
    paths = [one.path for one in ranked]
    paths += [path for path in of_axes if path not in paths]
    yield heading("Hyperparameter importance")
    if ranked:
        yield from _importances(snapshot, rung, ranked)
    else:
        n = len(importance.points_at_rung(snapshot, snapshot.rungs))
        yield paragraph(
            f"Too few trials to estimate importance: {n} reached the last rung, {importance.MIN_TRIALS} are needed."
        )
    if len(of_axes) > 1:
        yield from _interactions(importance.interactions(snapshot))
    yield from _slices(snapshot, paths)
    yield from _contours(snapshot, paths, rung)
    yield from _learning_rate(snapshot, of_axes, paths, out)


def _importances(snapshot: Snapshot, rung: int, ranked: Sequence[importance.Importance]) -> Iterator[str]:
    n = len(importance.points_at_rung(snapshot, rung))
    caption = (
        f"Importance by PED-ANOVA: where the best third of the {n} trials at rung {rung} of {snapshot.rungs} lie, "
    )
    caption += (
        "compared with all of them. Mark: the importance that a hyperparameter without effect exceeds one time in "
    )
    caption += (
        "20, from shuffled values. A grey bar does not exceed its mark, so there is no evidence of an effect; this "
    )
    caption += "does not prove that there is none. A search that changes several hyperparameters together can make one "
    caption += "look important because of another."
    yield figure_element(importance_figures.importance_figure(ranked), "importance", caption)
    by_rung = importance.importances_by_rung(snapshot)
    if len(by_rung) > 1:
        caption = "Importance at each rung, over all trials that reached it, including trials pruned later. What "
        caption += "matters early in training may not matter at its end. Diverged trials count as the worst."
        figure = importance_figures.importance_by_rung_figure(snapshot, by_rung)
        yield figure_element(figure, "importance-by-rung", caption)


def _interactions(tests: InteractionTests) -> Iterator[str]:
    if not tests.pairs:
        if tests.needed:
            reached = f"{tests.n} reached rung {tests.rung}, {tests.needed} are needed."
            yield paragraph(f"Too few trials to test for interactions: {reached}")
        return
    n, total = sum(pair.p < 1 - LEVEL for pair in tests.pairs), len(tests.pairs)
    yield paragraph(
        f"Interactions: {n or 'none'} of {total} pairs of hyperparameters interact significantly.", "lead-in"
    )
    yield html_table(
        [
            {
                "pair": f"{pair.first} × {pair.second}",
                "p, corrected": f"{pair.p:.2g}",
                "explained": f"{pair.explained:.0%}",
            }
            for pair in tests.pairs[:MAX_INTERACTIONS]
        ]
    )
    note = "F test of a linear model of all hyperparameters and their squares, with and without the product of the "
    note += (
        f"pair, on {tests.n} trials at rung {tests.rung}. p-values are corrected by Holm's method. explained: share of "
    )
    note += "the residual variance that the product explains. The trials of a search are not a designed experiment; "
    note += "`hpo ablate` measures effects in pairs of runs."
    yield paragraph(note, "small")


def _slices(snapshot: Snapshot, paths: Sequence[str]) -> Iterator[str]:
    yield heading("Slice plots")
    caption = (
        "Value of each trial against each hyperparameter, on the scale of its range. Grey: trials that ended early, "
    )
    caption += "at their last value, which is not a result. A search samples more often where it found good values, so "
    caption += "the number of dots is no evidence."
    for i, figure in enumerate(space_figures.slice_figures(snapshot, paths)):
        yield figure_html(figure, f"slices-{i}", caption if i == 0 else "The same for more hyperparameters.")


def _contours(snapshot: Snapshot, paths: Sequence[str], rung: int) -> Iterator[str]:
    figures = space_figures.contour_figures(snapshot, paths, rung)
    if not figures:
        return
    yield heading("Contour plots")
    caption = (
        f"{snapshot.objective} at rung {rung} over two hyperparameters; dark is better, each dot is a trial. Values "
    )
    caption += "between the dots are linearly interpolated and include the noise. The worst tenth has one colour."
    for i, figure in enumerate(figures):
        yield figure_html(figure, f"contour-{i}", caption if i == 0 else "The same for another pair.")


def _learning_rate(snapshot: Snapshot, of_axes: dict[str, Axis], paths: Sequence[str], out: Path) -> Iterator[str]:
    lr, schedule = lr_figures.lr_figure(snapshot, of_axes, paths), lr_figures.schedule_figure(snapshot, out)
    if not lr and not schedule:
        return
    yield heading("Learning rate")
    if lr:
        caption = "Value of each complete trial against its learning rate. Colour: the most important other "
        caption += "hyperparameter. If the minimum moves with the colour, the two interact."
        yield figure_html(lr, "lr", caption)
    if schedule:
        yield figure_html(schedule, "schedule", "Learning rate of the best run at each rung.")

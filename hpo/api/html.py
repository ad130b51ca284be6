"""How a study shows itself in a notebook: status, best trials and learning curves, without JavaScript."""

import math
from collections.abc import Sequence
from html import escape

from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.status import status_text
from hpo.analysis.summary import trial_columns
from hpo.console import format_number, printable, with_columns
from hpo.report.curve_figures import thinned
from hpo.report.html import bullets, html_table
from hpo.report.style import BLUE, FAINT, ORANGE
from hpo.storage.trials import State, Trial, load_details
from hpo.view.rows import short_names

MAX_BEST = 5  # rows of the table of the best trials
MAX_PARAMS = 8  # columns of it
MAX_CURVES = 60
WIDTH, HEIGHT, MARGIN = 560, 180, 60  # of the figure in pixels; the margin holds the labels
FAR = 0.9  # share of the values that decides about the range of the figure; far worse values are cut off


def study_html(snapshot: Snapshot) -> str:
    """Return a study as HTML."""
    title, *lines = status_text(snapshot).split("\n")
    return "".join(
        [
            f"<div><b>{escape(printable(title))}</b></div>",
            _bar(snapshot),
            bullets(lines),
            _best_trials(snapshot),
            curves_svg(snapshot),
        ]
    )


def _bar(snapshot: Snapshot) -> str:
    """Return a bar of the ended trials, "" for a study without a limit on trials."""
    total = sum(snapshot.slots.values())
    if not snapshot.budget.get("trials") or not total:
        return ""
    n = trial_counts(snapshot)
    share = min(1.0, (n["complete"] + n["pruned"] + n["failed"]) / total)
    filled = f'<div style="background:{BLUE};width:{100 * share:.1f}%;height:6px"></div>'
    return f'<div style="background:{FAINT};width:{WIDTH}px;max-width:100%;margin:4px 0">{filled}</div>'


def _best_trials(snapshot: Snapshot) -> str:
    best = [] if snapshot.spec.get("arms") else sorted(snapshot.feasible, key=snapshot.loss)[:MAX_BEST]
    load_details(best)
    names = short_names(snapshot)
    rows = []
    for trial in best:
        columns = {k: v for k, v in trial_columns(snapshot, trial).items() if k not in ("state", "rung")}
        params = {names.get(path, path): value for path, value in list(trial.params.items())[:MAX_PARAMS]}
        rows.append(with_columns(columns, params, "params"))
    return html_table(rows)


def curves_svg(snapshot: Snapshot) -> str:
    """Return the curves of the trials as a figure, "" if fewer than two rungs were reported.

    The best trial is drawn last, above complete trials and trials that ended early.
    """
    started = [t for t in snapshot.trials if t.last_step]
    shown, best = thinned(snapshot, started, MAX_CURVES), snapshot.best()
    load_details(shown)
    losses = sorted(
        snapshot.direction.loss(v) for t in shown for v in t.intermediate_values.values() if math.isfinite(v)
    )
    if snapshot.rungs < 2 or len(losses) < 2:
        return ""
    low, high = losses[0], losses[min(len(losses) - 1, int(FAR * len(losses)))]
    high = high if high > low else low + 1.0
    rank = {t.number: (t is best, t.state == State.COMPLETE) for t in shown}
    lines = [_line(snapshot, t, best, (low, high)) for t in sorted(shown, key=lambda t: rank[t.number])]
    ends = [format_number(snapshot.direction.loss(value)) for value in (high, low)]
    if snapshot.direction.loss(1.0) < 0:
        ends.reverse()
    return _figure([*lines, *_labels(snapshot, ends, best)])


def _line(snapshot: Snapshot, trial: Trial, best: Trial | None, ends: tuple[float, float]) -> str:
    """Return the curve of a trial; ends: the losses at both ends of the figure."""
    colour, width = (ORANGE, 2.2) if trial is best else (BLUE if trial.state == State.COMPLETE else FAINT, 1.0)
    points = []
    for rung, value in sorted(trial.intermediate_values.items()):
        share = (snapshot.direction.loss(value) - ends[0]) / (ends[1] - ends[0])
        if math.isfinite(value) and share <= 1:
            height = share if snapshot.direction.loss(1.0) < 0 else 1 - share
            x = MARGIN + (WIDTH - MARGIN - 10) * (rung - 1) / (snapshot.rungs - 1)
            points.append(f"{x:.1f},{10 + (HEIGHT - 40) * height:.1f}")
    if len(points) < 2:
        return ""
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _labels(snapshot: Snapshot, ends: Sequence[str], best: Trial | None) -> list[str]:
    """Return the axes' labels; ends: the values at the top and at the bottom."""
    name = escape(printable(snapshot.objective, keep=""))
    text = f"{name} at rungs 1 to {snapshot.rungs}" + (f"; orange: trial {best.number}, the best" if best else "")
    style = 'font-size="11" font-family="sans-serif" fill="currentColor"'
    return [
        f'<text x="{MARGIN - 6}" y="16" text-anchor="end" {style}>{ends[0]}</text>',
        f'<text x="{MARGIN - 6}" y="{HEIGHT - 28}" text-anchor="end" {style}>{ends[1]}</text>',
        f'<text x="{MARGIN}" y="{HEIGHT - 8}" {style}>{text}</text>',
    ]


def _figure(parts: Sequence[str]) -> str:
    frame = (
        f'<rect x="{MARGIN}" y="8" width="{WIDTH - MARGIN - 8}" height="{HEIGHT - 34}" fill="none" stroke="{FAINT}"/>'
    )
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{frame}{"".join(parts)}</svg>'

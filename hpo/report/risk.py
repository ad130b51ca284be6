"""The section "What pruning risked" of a report."""

import math
from collections.abc import Iterator

from hpo.analysis.snapshot import Snapshot
from hpo.analysis.summary import objective_decimals
from hpo.console import Rounded, fixed
from hpo.replay.measures import Estimate
from hpo.replay.risk import N_ORDERS, PruningRisk, pruning_risk
from hpo.report.html import bullets, figure_element, heading, html_table, paragraph
from hpo.report.replay_page import rank_figure
from hpo.storage.trials import State

MIN_KNOWN = 5  # trials with a known result without which nothing can be said
MAX_ROWS = 5


def risk_section(snapshot: Snapshot) -> Iterator[str]:
    """Yield what the pruner risked, for a search in which it ended trials."""
    if snapshot.spec.get("arms") or not any(t.state == State.PRUNED for t in snapshot.own):
        return
    if sum(t.state == State.COMPLETE for t in snapshot.own) < MIN_KNOWN:
        return
    risk = pruning_risk(snapshot)
    if not risk.n_pruned:
        return
    yield heading("What pruning risked")
    yield bullets(list(_sentences(snapshot, risk)))
    if not math.isnan(risk.rank[0].value):
        caption = "Rank correlation of the value at a rung with the result, over trials with a known result. At a rung "
        caption += "with a low value, a pruner cannot recognize good trials. Bars: 95 % intervals."
        yield figure_element(rank_figure(risk.rank), "rank", caption)
    closest = [one for one in risk.judged if one.best is not None][:MAX_ROWS]
    if closest:
        d = objective_decimals(snapshot)
        yield html_table(
            [
                {
                    "trial": one.number,
                    "ended at rung": one.rung,
                    "value there": Rounded(one.value, d),
                    "complete trials as bad there": one.n_as_bad,
                    "their best result": Rounded(one.best or 0.0, d),
                }
                for one in closest
            ]
        )
        yield paragraph("The pruned trials whose equals at that rung ended best.", "small")


def _sentences(snapshot: Snapshot, risk: PruningRisk) -> Iterator[str]:
    yield (
        f"The results of {risk.n_pruned} pruned trials are not known. The figures below are those of the "
        f"{risk.n_known} trials with a known result, most of which this pruner has let through. The risk may be higher."
    )
    yield (
        f"If the same trials came in another order, this pruner would end {_share(risk.pruned)} of them, and "
        f"{_share(risk.lost)} of the best tenth ({N_ORDERS} random orders)."
    )
    alone = sum(one.best is None for one in risk.judged)
    if alone:
        yield (
            f"{alone} of {len(risk.judged)} pruned trials were worse than every complete trial at the rung where they "
            "ended. Nothing is known about such trials."
        )
    best = snapshot.best()
    closest = next((one for one in risk.judged if one.best is not None), None)
    if closest is not None and closest.best is not None and best is not None:
        d = objective_decimals(snapshot)
        yield (
            f"Complete trials that were as bad as a pruned trial at the rung where it ended reached "
            f"{fixed(closest.best, d)} at best. The best trial reached {fixed(best.values[0], d)}."
        )


def _share(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "none"
    return f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%})"

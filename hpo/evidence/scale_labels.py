"""The labels of an ablation's changes: whether their effects hold at the scales of the search's ladder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.analysis.snapshot import Snapshot
from hpo.console import format_number
from hpo.errors import NothingFeasible, Problem
from hpo.storage.retry import OpenStorage
from hpo.study.stored import study_from_spec
from hpo.transfer.fitted import find_ladder
from hpo.transfer.labels import cell_effects
from hpo.transfer.ladder import Ladder
from hpo.transfer.prediction import fit_ladder
from model.section import flat


@dataclass(frozen=True)
class ScaleLabel:
    """The label of one change, and its effect at each cell as text."""

    label: str
    effects: Mapping[str, str]


def scale_labels(store: OpenStorage, ablation: Snapshot) -> dict[str, ScaleLabel]:
    """Return the label of each change of an ablation, {} if the search has no finished ladder.

    A change of a field that the ladder does not vary, such as the name of a component, is undecided.
    """
    try:
        ladder = find_ladder(store, str(ablation.spec["about"]["ablates"]))
        surface = None if ladder is None else fit_ladder(ladder)
    except (NothingFeasible, Problem):  # too few runs, or a configuration class that is not on this machine
        return {}
    if ladder is None or surface is None:
        return {}
    before = flat(study_from_spec(ablation.spec, ablation.name).base)
    axes = {axis.path: axis for axis in ladder.axes}
    labels = {}
    for name, values in ablation.spec["about"]["factors"].items():
        if not all(path in axes and axes[path].holds(side.get(path)) for side in (before, values) for path in values):
            labels[name] = ScaleLabel("undecided", {})
            continue
        effects, label = cell_effects(ladder, surface, {path: before[path] for path in values}, values)
        labels[name] = ScaleLabel(label, {_cell_text(ladder, e.cell): _effect_text(e) for e in effects})
    return labels


def _cell_text(ladder: Ladder, cell: tuple[Any, ...]) -> str:
    return ", ".join(f"{path.rpartition('.')[2]} {v:,}" for path, v in zip(ladder.cell_fields, cell, strict=True))


def _effect_text(effect: Any) -> str:
    low, high = format_number(effect.low), format_number(effect.high)
    return f"{format_number(effect.mean)} ({low} to {high})"

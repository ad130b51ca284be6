"""The section of a report on ladders: bowls, laws, the prediction with its interval, and what was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.errors import NothingFeasible, Problem
from hpo.evidence.confirm_verdicts import confirmation_verdicts
from hpo.evidence.verify import VERIFIES, loss_line, verification_table
from hpo.report.html import bullets, figure_element, heading, html_table, paragraph
from hpo.report.transfer_figures import bowls_figure, law_figure
from hpo.storage.attributes import SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.transfer.fit import Surface
from hpo.transfer.ladder import Ladder, is_ladder, ladders_of, read_ladder
from hpo.transfer.lines import cell_table, law_table, prediction_lines, prediction_table
from hpo.transfer.prediction import Prediction, fit_ladder, predict


@dataclass(frozen=True)
class LadderResult:
    """A finished ladder, its fit, and the studies that verified its predictions. problem: why there is no fit."""

    snapshot: Snapshot
    ladder: Ladder | None = None
    surface: Surface | None = None
    prediction: Prediction | None = None
    verified: Sequence[Snapshot] = ()
    problem: str = ""


def ladder_results(store: OpenStorage, snapshot: Snapshot) -> list[LadderResult]:
    """Return the fitted ladders of a search, or the ladder itself if the study is one."""
    snapshots = [snapshot] if is_ladder(snapshot) else ladders_of(store, snapshot)
    return [_result(store, ladder) for ladder in snapshots if has_ended(ladder)]


def _result(store: OpenStorage, snapshot: Snapshot) -> LadderResult:
    try:
        ladder = read_ladder(snapshot)
        surface = fit_ladder(ladder)
        prediction = predict(ladder, surface, snapshot.spec["about"]["target"])
    except (NothingFeasible, Problem) as problem:
        return LadderResult(snapshot, problem=str(problem))
    verified = []
    for name, study_id in sorted(study_ids(store).items()):
        about = study_attrs(store, study_id).get(SPEC, {}).get("about") or {}
        if about.get(VERIFIES) in snapshot.names:
            verified.append(read_snapshot(store, name))
    return LadderResult(snapshot, ladder, surface, prediction, [study for study in verified if has_ended(study)])


def transfer_section(results: Sequence[LadderResult]) -> Iterator[str]:
    """Yield one section for each ladder."""
    for result in results:
        yield heading(f"Transfer to longer and larger runs: {result.snapshot.name}")
        if result.ladder is None or result.surface is None or result.prediction is None:
            yield paragraph(f"No law could be fitted: {result.problem}")
            continue
        yield from _fitted(result, result.ladder, result.surface, result.prediction)
        for study in result.verified:
            yield heading(f"Predicted against measured: {study.name}")
            yield bullets([*confirmation_verdicts(study), loss_line(study)])
            yield html_table(verification_table(study))


def _fitted(result: LadderResult, ladder: Ladder, surface: Surface, prediction: Prediction) -> Iterator[str]:
    snapshot = result.snapshot
    yield bullets(prediction_lines(snapshot.objective, prediction))
    yield html_table(prediction_table(prediction))
    rates = [i for i, axis in enumerate(ladder.axes) if axis.role == "lr"]
    for i in rates:
        figure, notes = bowls_figure(snapshot, ladder, surface, i)
        caption = "Runs of the ladder, and the fitted loss of each cell with all other fields at their optimum. "
        yield figure_element(figure, f"{snapshot.name}-bowls-{i}", " ".join([caption, *notes]))
    for i in range(len(ladder.axes)):
        figure, notes = law_figure(ladder, surface, prediction, i)
        caption = (
            "Fitted optimum over the length of a run at the size of the target, with its 90 % interval. Dots: the "
        )
        caption += "optimum of each cell, at its own size."
        yield figure_element(figure, f"{snapshot.name}-law-{i}", " ".join([caption, *notes]))
    yield html_table(cell_table(ladder, surface))
    yield html_table(law_table(ladder, surface))
    note = "Exponents of the optimum in tokens and in size, the number of weights in the matrices of all blocks. "
    note += "Intervals come from a bootstrap over the runs, each with its own seed, and from the spread of published "
    note += "exponents, which are priors. See `docs/transfer.md`."
    yield paragraph(note, "small")

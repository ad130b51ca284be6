"""Labels of changes: what keeps its effect at all cells, what loses it, and what a ladder cannot tell."""

import numpy as np
import pytest

from hpo.study.spec import Study, StudyFile
from hpo.transfer.fit import Surface, fit_surface
from hpo.transfer.labels import Label, cell_effects
from hpo.transfer.ladder import Ladder
from hpo.transfer.laws import layout_of
from model.config import TrainConfig
from tests.hpo.transfer.test_fit import AXES, CELLS, loss, planted

COPIED = {"optimizer.lr": 5e-3, "run.batch_size": 8.0}
FIELDS = ("run.tokens",)


class PlantedLadder(Ladder):
    """A ladder whose cells are those of the planted law."""

    def at(self, cell: tuple[int, ...]) -> TrainConfig:
        return cell  # type: ignore[return-value]


@pytest.fixture(scope="module")
def ladder() -> Ladder:
    study = Study("s", "s", StudyFile(space={"optimizer.lr": {"low": 1e-4, "high": 1e-1}}), TrainConfig())
    cells = [(k,) for k in range(len(CELLS))]
    return PlantedLadder("s", study, AXES, FIELDS, COPIED, {}, cells, [], [])


@pytest.fixture(scope="module")
def surface() -> Surface:
    runs = planted(0, n=30, noise=0.001)
    return fit_surface(layout_of(AXES, runs), runs, 40)


@pytest.mark.parametrize(
    ("before", "after", "label"),
    [
        ({"optimizer.lr": 1e-1}, {"optimizer.lr": 5e-3}, "scale-stable"),  # far above the optimum of every cell
        ({"run.batch_size": 8}, {"run.batch_size": 18}, "scale-bound"),  # the optimum of a quarter of the tokens
        ({"run.batch_size": 8}, {"run.batch_size": 8}, "undecided"),
        # the optimum of the smallest cell against that of four times the tokens and four times the size
        ({"run.batch_size": 32}, {"run.batch_size": 8}, "scale-bound"),
    ],
)
def test_a_change_is_labelled_by_its_effect_at_the_cells(
    ladder: Ladder,
    surface: Surface,
    before: dict[str, float],
    after: dict[str, float],
    label: Label,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hpo.transfer.labels.scale_of", lambda cell: tuple(CELLS[cell[0]]))
    effects, found = cell_effects(ladder, surface, before, after)
    assert found == label
    true = []
    for s in CELLS:
        points = [[axis.coordinate({**COPIED, **values}[axis.path]) for axis in AXES] for values in (before, after)]
        losses = loss(np.array(points), np.repeat(s[None, :], 2, 0))
        true.append(losses[1] - losses[0])
    inside = [effect.low - 0.01 <= t <= effect.high + 0.01 for effect, t in zip(effects, true, strict=True)]
    assert sum(inside) >= 3

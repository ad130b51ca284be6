"""Cells of a ladder: lengths and sizes below the target, runs within the budget, and messages for what does not fit."""

from typing import Any

import pytest
from pydantic import BaseModel

from hpo.errors import Problem
from hpo.transfer.cells import MIN_RUNS, Cell, plan_cells, with_runs
from hpo.transfer.scale import compute_of, parse_target, scale_of, size_of, target_config
from model.config import TrainConfig
from model.section import updated

BASE = TrainConfig.model_validate(
    {
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context": 32},
        "run": {"tokens": 64_000, "rungs": 4, "batch_size": 4, "align": 1},
    }
)


def test_lengths_are_evenly_spaced_up_to_a_quarter_of_the_target_and_the_cheapest_get_most_runs() -> None:
    cells = plan_cells(BASE, {"run.tokens": 1_024_000}, 3, None)
    assert [cell.tokens for cell in cells] == [64_000, 128_000, 256_000]
    assert [cell.runs for cell in cells] == sorted((cell.runs for cell in cells), reverse=True)
    assert cells[0].runs > cells[-1].runs >= MIN_RUNS


def test_a_ladder_of_lengths_and_sizes_is_a_grid_below_the_target() -> None:
    target = {"run.tokens": 1_024_000, "model.n_embd": 128}
    cells = plan_cells(BASE, target, 4, None)
    scales = {(cell.tokens, cell.values["model.n_embd"]) for cell in cells}
    assert scales == {(64_000, 32), (64_000, 64), (256_000, 32), (256_000, 64)}
    assert {cell.values["model.n_embd"] // cell.values["model.n_head"] for cell in cells} == {16}
    most = compute_of(target_config(BASE, target)) / 4
    assert all(compute_of(updated(BASE, dict(cell.values))) <= most for cell in cells)


def test_a_ladder_of_sizes_has_the_length_of_the_target() -> None:
    cells = plan_cells(BASE, {"model.n_embd": 256}, 3, None)
    assert {cell.tokens for cell in cells} == {64_000}
    assert [cell.values["model.n_embd"] for cell in cells] == sorted({c.values["model.n_embd"] for c in cells})
    assert max(cell.values["model.n_embd"] for cell in cells) < 256


def test_the_runs_stay_within_the_budget_and_a_small_budget_shortens_the_ladder() -> None:
    for budget in (3_000_000, 6_000_000, 20_000_000):
        cells = plan_cells(BASE, {"run.tokens": 1_024_000}, 4, budget)
        spent = sum(cell.runs * cell.tokens for cell in cells)
        assert 0.6 * budget < spent <= budget
    shorter = plan_cells(BASE, {"run.tokens": 1_024_000}, 4, 1_500_000)
    assert max(cell.tokens for cell in shorter) < 256_000


def test_two_cells_cannot_show_both_a_law_of_tokens_and_one_of_size() -> None:
    target = {"run.tokens": 1_024_000, "model.n_embd": 128}
    with pytest.raises(Problem, match=r"^--ladder: must be at least 3 if length and size change, got 2$"):
        plan_cells(BASE, target, 2, None)
    for path in (0, 1):
        cells = plan_cells(BASE, target, 3, None)
        assert len({scale_of(updated(BASE, dict(cell.values)))[path] for cell in cells}) > 1


def test_a_configuration_class_of_ones_own_has_no_size_whatever_its_fields_are_called() -> None:
    class Model(BaseModel):
        n_embd: int = 32
        n_layer: int = 2

    class Own(BaseModel):
        model: Model = Model()

    assert size_of(Own()) == 1.0


def test_more_runs_go_to_cheap_cells_by_the_square_root_of_their_cost() -> None:
    cheap, dear = with_runs([Cell({"run.tokens": 1_000}), Cell({"run.tokens": 4_000})], 2_000_000)
    assert abs(cheap.runs / dear.runs - 2) < 0.02


@pytest.mark.parametrize(
    ("target", "cells", "budget", "message"),
    [
        ({"run.tokens": 32_000}, 4, None, "--to run.tokens: must be at least 64,000, as in the search, got 32,000"),
        ({"model.n_embd": 16}, 4, None, "--to model.n_embd: must be at least 32, as in the search, got 16"),
        ({"run.tokens": 64_000}, 4, None, "--to: must be larger than the search"),
        ({"run.tokens": 1_024_000}, 4, 50_000, "--budget-tokens: must be at least "),
        ({"optimizer.lr": 1}, 4, None, "--to optimizer.lr: must be one of run.tokens, model.n_embd"),
        ({"run.tokens": "long"}, 4, None, "--to run.tokens: must be a whole number above 0, got 'long'"),
        ({"model.n_embd": 100, "model.n_head": 3}, 4, None, "--to: model: n_embd must be a multiple of n_head"),
        ({"run.tokens": 65_000}, 4, None, "--to: must be so much larger than the search"),
    ],
)
def test_what_does_not_fit_is_one_message(target: dict[str, Any], cells: int, budget: int | None, message: str) -> None:
    base = updated(BASE, {"run.rungs": 400}) if target == {"run.tokens": 65_000} else BASE
    with pytest.raises(Problem) as raised:
        plan_cells(base, target, cells, budget)
    assert str(raised.value).startswith(message)
    assert len(raised.value.lines) == 1


def test_the_size_counts_the_matrices_of_all_blocks() -> None:
    # Attention has four matrices of 32 x 32, the MLP two of 32 x 128, in each of two blocks.
    assert size_of(BASE) == 2 * (4 * 32 * 32 + 2 * 32 * 128)


@pytest.mark.parametrize("text", ["run.tokens", "=3", "", "run.tokens="])
def test_a_target_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(Problem, match="--to"):
        parse_target(text) and target_config(BASE, parse_target(text))


def test_a_target_may_have_underscores_and_several_fields() -> None:
    assert parse_target("run.tokens=8_000_000, model.n_embd=384") == {"run.tokens": 8_000_000, "model.n_embd": 384}

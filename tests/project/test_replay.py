"""Simulated searches of `make replay`: kept results, interruptions, and the tables made from them."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import replay
from bench.replay_plan import ASHA, OWN, PLANS, PRUNERS, SAMPLERS, WORLD_NAMES, Cell
from docs import search_tables
from hpo.search.pruners import Pruner
from hpo.search.samplers import Sampler
from tests.support.curves import crossing_curves

CELL = Cell("made-up", "shuffled", "pool", "median", seeds=4, trials=30)
needs_curves = pytest.mark.skipif(not os.environ.get("HPO_CURVES"), reason="needs HPO_CURVES")


@pytest.fixture
def made_up_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(replay, "curves_of", lambda name: crossing_curves(36))
    replay.world_of.cache_clear()
    yield
    replay.world_of.cache_clear()


@pytest.mark.usefixtures("made_up_world")
def test_interrupted_cell_continues_with_the_searches_that_are_missing(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    replay.run_cell((whole, CELL, time.monotonic() + 60))
    tree = json.loads((whole / CELL.path).read_text())
    replay.write_json(parts / CELL.path, {**tree, "records": tree["records"][1:3]})
    assert replay.missing_seeds(parts, CELL) == [0, 3]
    replay.run_cell((parts, CELL, time.monotonic() + 60))
    assert (parts / CELL.path).read_text() == (whole / CELL.path).read_text()
    assert replay.missing_seeds(parts, CELL) == []


@pytest.mark.usefixtures("made_up_world")
def test_results_of_other_rules_do_not_count(tmp_path: Path) -> None:
    replay.run_cell((tmp_path, CELL, time.monotonic() + 60))
    tree = json.loads((tmp_path / CELL.path).read_text())
    tree["pruner"]["peers"] = "finished"
    replay.write_json(tmp_path / CELL.path, tree)
    assert replay.missing_seeds(tmp_path, CELL) == [0, 1, 2, 3]


@pytest.mark.usefixtures("made_up_world")
def test_piece_that_is_over_time_is_not_started(tmp_path: Path) -> None:
    assert "stopped at the time limit" in replay.run_cell((tmp_path, CELL, time.monotonic() - 1))
    assert not (tmp_path / CELL.path).exists()


def test_full_plan_has_every_sampler_with_every_pruner_on_the_own_worlds() -> None:
    cells = list(PLANS["full"]())
    assert len({cell.path for cell in cells}) == len(cells)
    for world in OWN:
        pairs = {(cell.sampler, cell.pruner) for cell in cells if (cell.world, cell.kind) == (world, "nearest")}
        shipped = {(sampler, pruner) for sampler in SAMPLERS for pruner in PRUNERS}
        assert pairs == shipped | {("tpe", pruner) for pruner in ASHA}
    assert all(cell.seeds >= 20 for cell in cells)
    assert {cell.world for cell in cells} == set(WORLD_NAMES)


def test_plan_names_every_sampler_and_pruner_that_can_be_simulated() -> None:
    samplers = {kind.model_fields["name"].default for kind in Sampler.__args__[0].__args__}  # type: ignore[attr-defined]
    pruners = {kind.model_fields["name"].default for kind in Pruner.__args__[0].__args__}  # type: ignore[attr-defined]
    # The trials of a grid are those of its budget, and a threshold needs values of its own.
    assert samplers - {keys["name"] for keys in SAMPLERS.values()} == {"grid", "brute-force", "list"}
    assert pruners - {keys["name"] for keys in PRUNERS.values()} == {"threshold"}


@pytest.mark.usefixtures("made_up_world")
def test_tables_hold_the_kept_results(tmp_path: Path) -> None:
    replay.write_world(tmp_path, "own_names_pool", with_error=True)
    for pruner in ("none", "median"):
        cell = Cell("own_names_pool", "shuffled", "pool", pruner, seeds=3, trials=24)
        replay.run_cell((tmp_path / "quick", cell, time.monotonic() + 60))
    page = search_tables.with_tables(f"text\n{search_tables.BEGIN}\nold\n{search_tables.END}\nmore\n", tmp_path)
    assert page.startswith("text\n")
    assert page.endswith("\nmore\n")
    assert "old" not in page
    (row,) = [line for line in page.splitlines() if line.startswith("| own_names_pool | 24 | median |")]
    outcomes = [replay.read_records(tmp_path / "quick", cell)]
    pruned = np.sum([np.sum(one["groups"], axis=0) for one in outcomes[0]], axis=0)
    assert f"| {pruned[1] / pruned[0]:.2f} |" in row
    assert "No results are kept." in page
    assert search_tables.with_tables(page, tmp_path) == page


@needs_curves
def test_recorded_curves_are_those_that_their_description_says() -> None:
    curves = replay.curves_of("own_names_pool")
    assert (len(curves.params), curves.values.shape, curves.omitted) == (320, (413, 12), {})
    task = replay.curves_of("taskset_irnn")
    assert (len(task.params), task.rungs) == (1000, 10)
    assert 200 < np.isinf(task.finals).sum() < 300


@needs_curves
def test_kept_result_is_computed_again(tmp_path: Path) -> None:
    cell = Cell("own_names_pool", "shuffled", "pool", "median", seeds=2, trials=24)
    kept = replay.read_records(replay.RESULTS / "quick", cell)
    replay.run_cell((tmp_path, cell, time.monotonic() + 60))
    again = replay.read_records(tmp_path, cell)
    assert again == kept[:2]

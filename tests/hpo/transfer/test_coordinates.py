"""The coordinate check: on planted sizes, and on networks of several widths and depths."""

import math
from functools import partial

import pytest

from hpo.errors import Problem
from hpo.transfer.coordinates import (
    FLAT,
    Sweep,
    coordinate_lines,
    coordinate_table,
    run_sweep,
    slope,
    sweep_configs,
    sweep_values,
)
from model.data.corpus import PythonDocs
from model.data.tokenizer import Chars
from model.section import updated
from tests.support.cases import exhaustive
from tests.support.tiny import tiny

WIDTH, DEPTH = "model.n_embd", "model.n_layer"
SIZE = {"model.n_layer": 2, "model.n_embd": 64, "model.n_head": 4, "run.batch_size": 2, "model.context": 8}
KINDS = {
    "standard": {},
    "mup": {"model.parametrization": "mup", "model.base_width": 64},
    "completep": {"model.parametrization": "completep", "model.base_width": 64, "model.base_depth": 1},
}
MEASURED = SIZE | {"run.tokens": 4096, "data.layout": "stream", "run.precision": "fp32", "optimizer.lr": 1e-3}
# An embedding of size 1 outweighs the random outputs of the blocks at the start, which shrink with the depth.
DEEP = {"model.embedding_norm": True, "optimizer.lr": 5e-4, "model.context": 16, "run.batch_size": 8}


def sweep(kind: str, path: str, values: list[int], seeds: int) -> Sweep:
    from model.train.coordinates import activation_sizes

    config = tiny(MEASURED | KINDS[kind] | (DEEP if path == DEPTH else {}))
    if values[-1] == 512:
        config = config.model_copy(update={"data": PythonDocs(), "tokenizer": Chars()})
    measure = partial(activation_sizes, n_updates=10, seeds=range(seeds))
    return run_sweep(sweep_configs(config, path, values), path, measure)


def slopes(found: Sweep) -> dict[str, float]:
    """Return the slope of each layer after 10 updates."""
    return {layer: slope(found, layer, 10) for layer in found["layers"]}


# kind, field, its values, seeds, largest slope that counts as none. The fast cases have fewer sizes and seeds.
FAST = [("mup", WIDTH, [64, 256], 2, 0.1), ("completep", DEPTH, [2, 8], 2, 0.1)]
FULL = [
    ("mup", WIDTH, [64, 128, 256, 512], 6, FLAT),
    ("completep", WIDTH, [64, 128, 256, 512], 6, FLAT),
    ("completep", DEPTH, [2, 4, 8, 16], 4, FLAT),
]


@pytest.mark.parametrize(
    ("kind", "path", "values", "seeds", "most"), [*FAST, *(exhaustive(*case) for case in FULL)], ids=str
)
def test_sizes_after_ten_updates_do_not_depend_on_the_size_of_the_network(kind, path, values, seeds, most):
    found = slopes(sweep(kind, path, values, seeds))
    assert {layer: own for layer, own in found.items() if abs(own) > most} == {}


@pytest.mark.parametrize(
    ("path", "values", "seeds"),
    [
        (WIDTH, [64, 256], 2),
        (DEPTH, [2, 8], 2),
        exhaustive(WIDTH, [64, 128, 256, 512], 4),
        exhaustive(DEPTH, [2, 4, 8, 16], 4),
    ],
    ids=str,
)
def test_sizes_depend_on_the_size_of_the_network_in_the_standard_parametrization(path, values, seeds):
    found = slopes(sweep("standard", path, values, seeds))
    assert sum(abs(own) > 2 * FLAT for layer, own in found.items() if layer.startswith("blocks.")) >= 2


def planted(config):
    """Return sizes that grow as width^0.5 depth^-1 after one update, the same for two seeds up to a factor."""
    size = config.model.n_embd**0.5 / config.model.n_layer
    layers = [
        "embedding",
        *(f"blocks.{i}{part}" for i in range(config.model.n_layer) for part in (".attn", "")),
        "logits",
    ]
    return [{layer: [1.0, 1.0] for layer in layers}, {layer: [size / 2, size * 2] for layer in layers}]


def test_slopes_are_those_of_planted_power_laws():
    config = tiny(SIZE)
    found = [
        run_sweep(sweep_configs(config, path, [v, 2 * v, 8 * v]), path, planted)
        for path, v in ((WIDTH, 32), (DEPTH, 1))
    ]
    assert [s["over"] for s in found] == ["width", "depth"]
    assert found[0]["values"] == [32, 64, 256]
    assert found[0]["layers"]["logits"][1] == pytest.approx([width**0.5 / 2 for width in (32, 64, 256)])
    for s, wanted in zip(found, (0.5, -1.0), strict=True):
        assert {round(slope(s, layer, 1), 9) for layer in s["layers"]} == {wanted}
        assert {round(slope(s, layer, 0), 9) for layer in s["layers"]} == {0.0}
    assert list(found[1]["layers"]) == ["embedding", "blocks.0.attn", "blocks.0", "logits"]
    rows = coordinate_table(found)
    assert len(rows) == 6 + 4
    assert rows[0]["slope after 1"] == "+0.500"
    lines = list(coordinate_lines("standard", found))
    assert "width 32 to 256, after 1 updates: 6 of 6 layers have a slope beyond 0.05" in lines[0]


def test_blocks_of_a_deep_network_are_averaged_over_the_part_of_the_shallow_one():
    def numbered(config):
        return [{f"blocks.{i}{part}": [math.exp(i)] for i in range(config.model.n_layer) for part in (".mlp", "")}]

    found = run_sweep(sweep_configs(tiny(SIZE), DEPTH, [2, 6]), DEPTH, numbered)
    assert found["layers"]["blocks.1.mlp"] == [[pytest.approx(math.exp(1)), pytest.approx(math.exp(4))]]
    assert found["layers"]["blocks.1"] == [[pytest.approx(math.exp(1)), pytest.approx(math.exp(5))]]


def test_sweeps_are_multiples_of_the_base_and_keep_the_size_of_a_head():
    mup, completep = (tiny(SIZE | KINDS[kind]) for kind in ("mup", "completep"))
    assert sweep_values(mup, None, None) == {WIDTH: [64, 128, 256, 512]}
    assert sweep_values(completep, None, None) == {WIDTH: [64, 128, 256, 512], DEPTH: [1, 2, 4, 8]}
    assert sweep_values(completep, [32, 64], None) == {WIDTH: [32, 64]}
    assert sweep_values(mup, None, [2, 4]) == {DEPTH: [2, 4]}
    widths = sweep_configs(updated(mup, {WIDTH: 128, "model.n_head": 8}), WIDTH, [256, 64, 64])
    assert [(c.model.n_embd, c.model.n_head, c.model.base_width) for c in widths] == [(64, 4, 64), (256, 16, 64)]


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        (WIDTH, [64, 100], "--widths: must be multiples of 16, the width of a head, got 100"),
        (WIDTH, [64, 64], "--widths: must be at least two different whole numbers above 0"),
        (DEPTH, [0, 2], "--depths: must be at least two different whole numbers above 0"),
        (DEPTH, [2, 3], "--depths: must be multiples of the smallest one, 2, got 3"),
    ],
)
def test_sizes_that_cannot_be_compared_are_refused(path, values, message):
    with pytest.raises(Problem, match=message):
        sweep_configs(tiny(SIZE), path, values)

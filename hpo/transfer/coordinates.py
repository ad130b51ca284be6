"""The coordinate check of a parametrization: how the sizes of activations grow with width and depth.

Under a parametrization whose hyperparameters carry over, the activations of each layer have the same size in a small
and in a large network, at the start and after each of the first updates.
Source: Yang et al. 2022, arXiv:2203.03466, appendix D.1; over the depth: Dey et al. 2025, arXiv:2505.01618, figure 7.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from hpo.config.validation import error_messages
from hpo.errors import Problem
from hpo.transfer.scale import SIZES, with_heads
from model.config import TrainConfig
from model.section import updated

RATIOS = (1, 2, 4, 8)  # sizes of a sweep, in multiples of the base
FLAT = 0.05  # largest slope of log size over log width or depth that counts as none
LOGITS = "logits"
OVER = {SIZES[0]: "width", SIZES[1]: "depth"}

Measure = Callable[[TrainConfig], Sequence[Mapping[str, Sequence[float]]]]
"""Sizes at the start and after each update: layer -> one number per seed."""
Sweep = dict[str, Any]
"""over: width or depth. values: its values. updates: their number. layers: layer -> update -> size at each value."""


def sweep_values(config: TrainConfig, widths: Sequence[int] | None, depths: Sequence[int] | None) -> dict[str, Any]:
    """Return the values of each sweep by the field that it changes.

    By default, these are multiples of the base. mup has no rule for the depth, so only widths are compared.

    widths, depths: None for the default.
    """
    model = config.model
    values: dict[str, Any] = {}
    if widths is not None or depths is None:
        base = model.base_width or model.n_embd
        values[SIZES[0]] = widths or [base * ratio for ratio in RATIOS]
    if depths is not None or (widths is None and model.parametrization != "mup"):
        base = model.base_depth or model.n_layer
        values[SIZES[1]] = depths or [base * ratio for ratio in RATIOS]
    return values


def sweep_configs(config: TrainConfig, path: str, values: Sequence[int]) -> list[TrainConfig]:
    """Return the configurations of a sweep. Width grows by heads of one size.

    Raises:
        Problem: there are fewer than two sizes, or a size does not fit the configuration.
    """
    option, sizes = f"--{OVER[path]}s", sorted(set(values))
    if len(sizes) < 2 or sizes[0] < 1:
        raise Problem(f"{option}: must be at least two different whole numbers above 0, got {list(values)}")
    head = config.model.n_embd // config.model.n_head
    if path == SIZES[0] and (wrong := [size for size in sizes if size % head]):
        raise Problem(f"{option}: must be multiples of {head}, the width of a head, got {wrong[0]}")
    if path == SIZES[1] and (wrong := [size for size in sizes if size % sizes[0]]):
        raise Problem(f"{option}: must be multiples of the smallest one, {sizes[0]}, got {wrong[0]}")
    try:
        return [updated(config, with_heads(config, {path: size})) for size in sizes]
    except ValidationError as error:
        raise Problem(*(f"{option}: {line}" for line in error_messages(error, TrainConfig))) from None


def run_sweep(configs: Sequence[TrainConfig], path: str, measure: Measure) -> Sweep:
    """Return the sizes of the activations of all configurations, as geometric means over the seeds.

    Over the depth, parts of the networks at the same fraction of the depth are compared.
    """
    first = configs[0].model.n_layer
    found = []
    for config in configs:
        ratio = config.model.n_layer // first
        found.append([_mean(sizes, ratio) for sizes in measure(config)])
    layers = {
        layer: [[sizes[update][layer] for sizes in found] for update in range(len(found[0]))] for layer in found[0][0]
    }
    values = [config.model.n_embd if path == SIZES[0] else config.model.n_layer for config in configs]
    return {"over": OVER[path], "values": values, "updates": len(found[0]) - 1, "layers": layers}


def _mean(sizes: Mapping[str, Sequence[float]], ratio: int) -> dict[str, float]:
    """Return the geometric mean of each layer over its seeds, under the name of its part of the shallowest network.

    Each block of the shallowest network corresponds to `ratio` blocks in a row: the outputs of their attention and MLP
    are averaged, and the residual stream is that after the last one.
    """
    logs: dict[str, list[float]] = {}
    for layer, values in sizes.items():
        name = layer
        if layer.startswith("blocks."):
            _, number, *part = layer.split(".")
            block, within = divmod(int(number), ratio)
            if not part and within < ratio - 1:
                continue
            name = ".".join(["blocks", str(block), *part])
        logs.setdefault(name, []).extend(math.log(value) for value in values)
    return {name: math.exp(math.fsum(values) / len(values)) for name, values in logs.items()}


def slope(sweep: Sweep, layer: str, update: int) -> float:
    """Return the slope of a least-squares line through log size over log width or depth."""
    xs, ys = ([math.log(value) for value in values] for values in (sweep["values"], sweep["layers"][layer][update]))
    x, y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    return math.fsum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / math.fsum((a - x) ** 2 for a in xs)


def coordinate_table(sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    """Return one row per layer: its sizes after the last update, and the slopes at the start, after one and all."""
    rows = []
    for sweep in sweeps:
        n = sweep["updates"]
        for layer, sizes in sweep["layers"].items():
            row = {"over": sweep["over"], "layer": layer}
            row |= {f"size at {name}": f"{sizes[n][i]:.3g}" for i, name in ((0, "smallest"), (-1, "largest"))}
            row |= {f"slope after {update}": f"{slope(sweep, layer, update):+.3f}" for update in sorted({0, 1, n})}
            rows.append(row)
    return rows


def coordinate_lines(parametrization: str, sweeps: Sequence[Sweep]) -> Iterator[str]:
    """Yield one line per sweep: the layer whose size changes most, and whether all slopes count as none."""
    for sweep in sweeps:
        n, values = sweep["updates"], sweep["values"]
        slopes = {layer: slope(sweep, layer, n) for layer in sweep["layers"]}
        worst = max(slopes, key=lambda layer: abs(slopes[layer]))
        steep = sum(abs(own) > FLAT for own in slopes.values())
        result = f"{steep} of {len(slopes)} layers have a slope beyond {FLAT}" if steep else f"all slopes within {FLAT}"
        yield (
            f"{parametrization}, {sweep['over']} {values[0]} to {values[-1]}, after {n} updates: {result}; "
            f"the steepest is {slopes[worst]:+.3f}, {worst}"
        )

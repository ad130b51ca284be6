"""The parts of `make gpu` in their order. What matters most comes first, because the time may end before the last."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.gpu import card, commands, full_size, loops, packs, steps, suite


@dataclass(frozen=True)
class Part:
    """A measurement in a process of its own."""

    name: str
    run: Callable[..., None]
    seconds: float
    """Time limit."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    beside: bool = False
    """Whether the part runs at the same time as the part before it. Only parts that time nothing do."""


MIXTURE = {"size": "10 M mixture", "sizes": (1, 4)}
PARTS = [
    Part("card", card.measure, 40),
    Part("tests", suite.measure, 130, {"processes": 4}),
    # Compilers use the processor while the tests run. Later parts load the compiled code from the cache.
    Part("compile 1 M", packs.warm_up, 130, {"size": "1 M"}, beside=True),
    Part("compile 10 M", packs.warm_up, 130, {"size": "10 M"}, beside=True),
    Part("compile loops 1 M", loops.warm_up, 130, {"size": "1 M"}, beside=True),
    Part("compile loops 10 M", loops.warm_up, 130, {"size": "10 M"}, beside=True),
    Part("compile loops mainrun", loops.warm_up, 130, {"size": "mainrun"}, beside=True),
    Part("compile mainrun", full_size.measure, 130, {"base": "mainrun", "compiled": True, "updates": 0}, beside=True),
    Part("compile unet", full_size.measure, 240, {"base": "unet", "compiled": True, "updates": 0}, beside=True),
    Part(
        "compile blueberry", full_size.measure, 130, {"base": "blueberry", "compiled": True, "updates": 0}, beside=True
    ),
    Part("compile mixture", packs.warm_up, 130, MIXTURE, beside=True),
    Part("mainrun", full_size.measure, 40, {"base": "mainrun"}),
    Part("blueberry", full_size.measure, 45, {"base": "blueberry"}),
    Part("unet", full_size.measure, 60, {"base": "unet", "updates": 1}),
    Part("profile", steps.measure_packs, 90),
    Part("profile mainrun", steps.measure, 40, {"runs": "mainrun", "K": 1, "compiled": True}),
    Part("profile blueberry", steps.measure, 40, {"runs": "blueberry", "K": 1, "compiled": False}),
    Part("packs 1 M compiled", packs.measure, 60, {"size": "1 M", "compiled": True}),
    Part("packs 10 M compiled", packs.measure, 60, {"size": "10 M", "compiled": True}),
    Part("packs 1 M", packs.measure, 45, {"size": "1 M", "compiled": False}),
    Part("loops 1 M", loops.measure, 45, {"size": "1 M", "compiled": True}),
    Part("loops 10 M", loops.measure, 45, {"size": "10 M", "compiled": True}),
    Part("loops mainrun", loops.measure, 45, {"size": "mainrun", "compiled": True}),
    Part("processes 1 M", packs.processes, 50, {"size": "1 M"}),
    Part("launches", commands.launches, 100),
    Part("mixture", packs.measure, 30, MIXTURE | {"compiled": False}),
    Part("mixture compiled", packs.measure, 45, MIXTURE | {"compiled": True}),
    Part("limits", commands.limits, 70, {"base": "mainrun"}),
    Part("mainrun compiled", full_size.measure, 60, {"base": "mainrun", "compiled": True}),
    Part("blueberry compiled", full_size.measure, 60, {"base": "blueberry", "compiled": True}),
    Part("unet compiled", full_size.measure, 130, {"base": "unet", "compiled": True}),
    Part("tests of full size", suite.measure, 90, {"files": suite.FULL_SIZE}),
    Part("packs 10 M", packs.measure, 45, {"size": "10 M", "compiled": False}),
    Part("processes 10 M", packs.processes, 45, {"size": "10 M"}),
    Part("loops 1 M eager", loops.measure, 30, {"size": "1 M", "compiled": False}),
]


def stages(parts: list[Part]) -> list[list[Part]]:
    """Return the parts that run at the same time, in their order."""
    grouped: list[list[Part]] = []
    for part in parts:
        if part.beside and grouped:
            grouped[-1].append(part)
        else:
            grouped.append([part])
    return grouped

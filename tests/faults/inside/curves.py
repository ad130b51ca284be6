"""Runs of a scene: known curves that resume from checkpoints, so that the checks find every wrong value."""

import builtins
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field


class Config(BaseModel):
    x: float = Field(default=0.5, ge=0.0, le=1.0)
    rungs: int = 4
    pause: float = 0.1
    nan_above: float = 1.0
    raises: str = ""


def curve(x: float, rungs: int) -> list[float]:
    """Return the values of all rungs; each depends on the previous one, so a wrong state changes all later ones."""
    values = [1.0 + x]
    while len(values) < rungs:
        values.append(values[-1] / 2 + x)
    return values


class Curves:
    """Runs side by side, as the worker drives them; a checkpoint holds the state of one, in JSON."""

    def __init__(self, configs: Sequence[Config]) -> None:
        self.configs: dict[int, Config] = {}
        self.states: dict[int, list[float]] = {}
        for lane, config in enumerate(configs):
            self.start(lane, config)

    def start(self, lane: int, config: Config) -> None:
        self.configs[lane], self.states[lane] = config, []

    def stop(self, lane: int) -> None:
        del self.configs[lane], self.states[lane]

    def save(self, lane: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / "part"
        part.write_text(json.dumps([len(self.states[lane]), self.states[lane][-1]]) + "\n" * 2000)
        part.replace(folder / "state.safetensors")

    def resume(self, lane: int, folder: Path) -> int:
        rung, state = json.loads((folder / "state.safetensors").read_text())
        self.states[lane] = [math.nan] * (rung - 1) + [state]
        return int(rung)

    def __iter__(self) -> Iterator[tuple[int, dict[int, Any]]]:
        while self.configs:
            time.sleep(max(config.pause for config in self.configs.values()))
            yield 0, {lane: self._advance(lane) for lane in list(self.configs)}

    def _advance(self, lane: int) -> dict[str, float]:
        config, states = self.configs[lane], self.states[lane]
        if config.raises:
            raise getattr(builtins, config.raises)(13, "Permission denied")
        states.append(states[-1] / 2 + config.x if states else 1.0 + config.x)
        diverged = config.x > config.nan_above and len(states) == 2
        return {"rung": len(states), "val_loss": math.nan if diverged else states[-1]}

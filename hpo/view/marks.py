"""Draw bars and sparklines as text, in Unicode or in ASCII."""

import math
from collections.abc import Mapping

from rich.text import Text

from hpo.search.direction import Direction

BETTER, WORSE = "green", "red"  # styles of values that are better or worse than those of the best trial
_STRETCH = 50  # how much a sparkline stretches the lower end of its scale, where curves of losses flatten out


class Marks:
    """The characters of bars and sparklines.

    unicode: whether the terminal can show block elements.
    """

    def __init__(self, unicode: bool) -> None:
        self.full, self.empty, self.no_number = ("█", "░", "×") if unicode else ("#", "-", "x")
        self.levels = "▁▂▃▄▅▆▇█" if unicode else "_.,-=+*#"

    def bar(self, share: float, width: int) -> Text:
        """Return a bar of which a share in [0, 1] is filled. Only a share of 1 fills all of it."""
        filled = min(int(share * width), width)
        return Text.assemble((self.full * filled, "cyan"), (self.empty * (width - filled), "dim"))

    def sparkline(self, curve: Mapping[int, float], best: Mapping[int, float], scale: "Scale", width: int) -> Text:
        """Return a curve as one character for each rung, or for each of `width` groups of rungs.

        curve, best: value by rung. A character is coloured where its value is better or worse than that of `best`.
        """
        line = Text()
        for rungs in _groups(scale.rungs, width):
            known = [rung for rung in rungs if rung in curve]
            value = curve[known[-1]] if known else None
            if value is None:
                line.append(" ")
            elif not math.isfinite(value):
                line.append(self.no_number, style=WORSE)
            else:
                level = self.levels[round(scale.height(value) * (len(self.levels) - 1))]
                line.append(level, style=_style(value, best.get(known[-1]), scale.direction))
        return line


class Scale:
    """The common scale of several sparklines.

    Its lower end is stretched logarithmically, because the first values of a loss are far above all that follow.
    """

    def __init__(self, curves: list[Mapping[int, float]], rungs: int, direction: Direction) -> None:
        losses = [direction.loss(v) for curve in curves for v in curve.values() if math.isfinite(v)]
        self.low, self.high = min(losses, default=0.0), max(losses, default=0.0)
        self.rungs, self.direction = rungs, direction

    def height(self, value: float) -> float:
        """Return the height of a value in [0, 1]. A larger value is higher in both directions."""
        if self.high == self.low:
            return 0.0
        share = (self.direction.loss(value) - self.low) / (self.high - self.low)
        height = math.log1p(_STRETCH * min(max(share, 0.0), 1.0)) / math.log1p(_STRETCH)
        return height if self.direction is Direction.MINIMIZE else 1 - height


def gap(value: float, best: float | None, decimals: int, direction: Direction) -> Text:
    """Return the difference of a value from that of the best trial at the same rung, coloured."""
    if best is None or not math.isfinite(value) or not math.isfinite(best):
        return Text("")
    return Text(f"{value - best:+.{decimals}f}", style=_style(value, best, direction))


def _style(value: float, best: float | None, direction: Direction) -> str:
    if best is None or value == best or not math.isfinite(best):
        return ""
    return BETTER if direction.loss(value) < direction.loss(best) else WORSE


def _groups(rungs: int, width: int) -> list[range]:
    """Return the rungs 1 to `rungs` as at most `width` groups of neighbours."""
    n = min(rungs, width)
    ends = [round((i + 1) * rungs / n) for i in range(n)]
    return [range(start + 1, end + 1) for start, end in zip([0, *ends], ends, strict=False)]

"""Positions of values in a range, on the scale of the range; loads neither Optuna nor the model."""

import math


def unit_position(value: float, low: float, high: float, *, log: bool = False, complement_log: bool = False) -> float:
    """Return the position of a value between the ends of a range: 0 at `low` and 1 at `high`, on the range's scale."""
    scaled_value, scaled_low, scaled_high = (_scaled(x, log, complement_log) for x in (value, low, high))
    return (scaled_value - scaled_low) / (scaled_high - scaled_low)


def _scaled(value: float, log: bool, complement_log: bool) -> float:
    if log:
        return math.log(value)
    return -math.log(1 - value) if complement_log else float(value)

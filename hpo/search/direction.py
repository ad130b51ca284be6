"""Whether a study minimizes or maximizes its objective. Every comparison of two results uses this module.

The module loads neither Optuna nor the model.
"""

from enum import StrEnum


class Direction(StrEnum):
    """The direction in which the objective of a study improves, with the word that Optuna uses."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"

    def loss(self, value: float) -> float:
        """Return a value of the objective as a loss, which is smaller for a better value.

        The function is its own inverse: it also returns the value of the objective from a loss.
        """
        return -value if self is Direction.MAXIMIZE else value

    @property
    def better_side(self) -> str:
        """Return the side on which better values lie, "below" or "above"."""
        return "above" if self is Direction.MAXIMIZE else "below"

    @property
    def worse_side(self) -> str:
        """Return the side on which worse values lie, "above" or "below"."""
        return "below" if self is Direction.MAXIMIZE else "above"

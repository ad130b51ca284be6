"""Names of the rules that carry a configuration over to another scale. This module loads quickly."""

from enum import StrEnum


class Rule(StrEnum):
    """How a configuration is carried over to another length, batch or size."""

    copy = "copy"
    nanochat = "nanochat"
    horizon = "horizon"
    fitted = "fitted"

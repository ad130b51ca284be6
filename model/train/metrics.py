"""What a run measures at a rung."""

import math
from typing import NamedTuple


class Metrics(NamedTuple):
    """What one run measured at one rung."""

    rung: int
    """1 at the first mark."""
    tokens: int
    """Trained on so far."""
    updates: int
    val_loss: float
    """Mean nats per target token over the whole validation split; nan where the run diverged."""
    val_bpb: float
    """Bits to code the validation text, per UTF-8 byte of it."""
    val_perplexity: float
    val_accuracy: float
    """Fraction of validation tokens predicted right."""
    ema_val_loss: float | None
    """val_loss of the averaged weights, where regularization.ema keeps them."""
    ema_val_bpb: float | None
    train_loss: float
    """Mean nats per token since the last rung, of the micro-steps whose loss was finite where a run may recover."""
    lr: float
    """Learning rate of the matrices of the last block in the last update."""
    grad_norm: float
    """Mean over the updates taken since the last rung, or since the run went back to it, before clipping."""
    clipped: float
    """Fraction of the updates since the last rung that were clipped; of their tensors, where each is by itself."""
    grad_norms: dict[str, float]
    """By parameter group, before clipping, in the last update; 0 where that failed."""
    update_ratios: dict[str, float]
    """Norm of the update over norm of the weights, by parameter group, in the last update; 0 where that failed, or
    all weights of the group were 0."""
    recoveries: int
    """Failed steps so far that the run recovered from."""
    tokens_per_second: float
    """Of this run, since the last rung, validation left out."""
    seconds: float
    """Spent on this run so far, validation included."""
    test_loss: float | None = None
    """val_loss of the test split, at the last rung, where run.test asks for it."""
    test_bpb: float | None = None
    ema_test_loss: float | None = None
    """test_loss of the averaged weights."""
    ema_test_bpb: float | None = None
    attention_entropy: list[float] | None = None
    """Mean entropy in nats of the attention weights, by layer, where run.diagnostics asks for it."""
    expert_load: list[list[float]] | None = None
    """Share of the assignments of each expert, by layer, of a mixture of experts."""
    kurtosis: list[float] | None = None
    """Excess kurtosis of the residual stream after each block."""


def perplexity(loss: float) -> float:
    """Return exp(loss), short of an overflow."""
    return math.exp(min(loss, 700.0))

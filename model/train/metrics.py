"""The metrics that a run reports at a rung."""

import math
from typing import NamedTuple


class Metrics(NamedTuple):
    """Metrics of one run at one rung."""

    rung: int
    """Number of the rung, starting at 1."""
    tokens: int
    """Tokens trained on so far, padding included."""
    updates: int
    """Updates so far, failed updates included."""
    val_loss: float
    """Mean cross-entropy over the whole validation split, in nats per target token; nan if the run diverged."""
    val_bpb: float
    """Bits per UTF-8 byte of the validation text."""
    val_perplexity: float
    """exp(val_loss)."""
    val_accuracy: float
    """Fraction of validation tokens that are predicted correctly, in [0, 1]."""
    ema_val_loss: float | None
    """val_loss of the averaged weights; None without regularization.ema."""
    ema_val_bpb: float | None
    """val_bpb of the averaged weights; None without regularization.ema."""
    train_loss: float
    """Mean training loss since the last rung, in nats per token. If the run may recover from failures, only
    micro-steps with a finite loss are part of the mean."""
    lr: float
    """Learning rate of the matrices of the last block in the last update."""
    grad_norm: float
    """Mean L2 norm of the gradient before clipping, over the optimizer steps since the last rung. A rollback to the
    last rung resets the mean."""
    clipped: float
    """Fraction of the optimizer steps since the last rung that were clipped, in [0, 1]. If the clipping rule treats
    each tensor separately: fraction of the tensors."""
    grad_norms: dict[str, float]
    """L2 norm of the gradient before clipping in the last update, by parameter group; 0 if that update failed."""
    update_ratios: dict[str, float]
    """Norm of the last update over the norm of the weights, by parameter group; 0 if that update failed or all weights
    of the group were 0."""
    recoveries: int
    """Failed steps so far from which the run recovered."""
    tokens_per_second: float
    """Training throughput of this run since the last rung, without validation."""
    seconds: float
    """Seconds spent on this run so far, validation included."""
    test_loss: float | None = None
    """val_loss of the test split at the last rung; None unless run.test is true."""
    test_bpb: float | None = None
    """val_bpb of the test split at the last rung; None unless run.test is true."""
    ema_test_loss: float | None = None
    """test_loss of the averaged weights."""
    ema_test_bpb: float | None = None
    """test_bpb of the averaged weights."""
    attention_entropy: list[float] | None = None
    """Mean entropy of the attention weights in nats, by layer; None unless run.diagnostics is true."""
    expert_load: list[list[float]] | None = None
    """Share of the assignments of each expert, by layer, in [0, 1]; None without experts or run.diagnostics."""
    kurtosis: list[float] | None = None
    """Excess kurtosis of the residual stream after each block; None unless run.diagnostics is true."""


def perplexity(loss: float) -> float:
    """Return exp(loss), bounded so that it does not overflow."""
    return math.exp(min(loss, 700.0))

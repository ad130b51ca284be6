"""The factors by which a parametrization makes the hyperparameters of a small network fit a larger one.

Sources: Yang et al. 2022, arXiv:2203.03466 (mup), in the form of EleutherAI/nanoGPT-mup@b2a5e60; Dey et al. 2025,
arXiv:2505.01618, table 1 with alpha = 1 (completep), in the form of the same repository @6f8bc3b.
"""

import math
from typing import NamedTuple

from model.nn.architecture import Transformer


class Factors(NamedTuple):
    """Factors on the values of the configuration. All are 1 with the standard parametrization.

    Hidden matrices are those of attention, MLP and embedding projections. m is the width, and L the depth, divided by
    that of the base.
    """

    hidden_std: float = 1.0
    """On the initial standard deviation of hidden matrices, if it does not depend on their shape."""
    hidden_lr: float = 1.0
    """On Adam's learning rate of hidden matrices. An orthogonal update, as of Muon, needs none."""
    hidden_decay: float = 1.0
    """On AdamW's weight decay of hidden matrices, which AdamW multiplies by the learning rate."""
    eps: float = 1.0
    """On Adam's eps, because gradients shrink with the size of the network."""
    residual: float = 1.0
    """On the outputs of attention and MLP, before they are added to the residual stream."""
    logits: float = 1.0
    """On the logits."""


def factors(config: Transformer) -> Factors:
    """Return the factors of model.parametrization."""
    if config.parametrization == "standard":
        return Factors()
    assert config.base_width is not None
    m = config.n_embd / config.base_width
    if config.parametrization == "mup":
        return Factors(hidden_std=m**-0.5, hidden_lr=1 / m, logits=1 / m)
    assert config.base_depth is not None
    L = config.n_layer / config.base_depth
    # Learning rates have the factor L**(alpha - 1), which is 1.
    return Factors(m**-0.5, hidden_lr=1 / m, hidden_decay=m, eps=1 / (m * L), residual=1 / L, logits=1 / m)


def attention_scale(config: Transformer) -> float | None:
    """Return the factor on attention scores, None for the standard one, 1 / sqrt(head width)."""
    return None if config.parametrization == "standard" else config.n_head / config.n_embd


def embedding_scale(config: Transformer) -> float:
    """Return the factor on token embeddings of `scale_embedding`, which does not grow with the width beyond the base.

    The entries of the residual stream must have the same size at every width.
    """
    return math.sqrt(config.base_width or config.n_embd)

"""The MLP of a block.

Shapes: K runs, N = B T tokens, C residual width.
"""

from torch import Tensor
from torch.nn import functional as F

from model.nn.architecture import Transformer
from model.nn.context import ForwardContext, Weights
from model.nn.linear import linear


def activate(kind: str, h: Tensor, gate: Tensor | None) -> Tensor:
    """Apply the activation of the hidden layer. gate: same shape as h, for swiglu only."""
    if gate is not None:
        return F.silu(gate) * h
    if kind == "gelu":
        return F.gelu(h)
    if kind == "silu":
        return F.silu(h)
    h = F.relu(h)
    return h * h if kind == "relu2" else h


def mlp(x: Tensor, w: Weights, layer: int, config: Transformer, ctx: ForwardContext) -> Tensor:
    """Apply the two linear layers of an MLP, or the three of swiglu, (K, N, C). x: (K, N, C)."""
    name = f"blocks.{layer}.mlp"
    gate = linear(x, w, f"{name}.gate") if config.mlp == "swiglu" else None
    h = activate(config.mlp, linear(x, w, f"{name}.fc"), gate)
    y = linear(ctx.drop(h, "mlp_dropout", 4 * layer + 3), w, f"{name}.proj")
    return ctx.drop(y, "residual_dropout", 4 * layer + 4)

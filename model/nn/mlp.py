"""The mlp of a block.

Shapes: B sequences, T tokens, C residual width.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from model.nn.architecture import Transformer
from model.nn.context import ForwardContext


def activated(kind: str, h: Tensor, gate: Tensor | None) -> Tensor:
    """Return the hidden layer after its activation. gate: as h, of swiglu alone."""
    if gate is not None:
        return F.silu(gate) * h
    if kind == "gelu":
        return F.gelu(h)
    if kind == "silu":
        return F.silu(h)
    h = F.relu(h)
    return h * h if kind == "relu2" else h


class MLP(nn.Module):
    """Two layers, or the gated three of swiglu."""

    def __init__(self, shape: Transformer, layer: int) -> None:
        super().__init__()
        C, hidden = shape.n_embd, shape.hidden()
        self.kind, self.site = shape.mlp, 4 * layer
        self.fc = nn.Linear(C, hidden, bias=shape.bias)
        self.gate = nn.Linear(C, hidden, bias=shape.bias) if shape.mlp == "swiglu" else None
        self.proj = nn.Linear(hidden, C, bias=shape.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        h = activated(self.kind, self.fc(x), None if self.gate is None else self.gate(x))
        y = self.proj(ctx.drop(h, "mlp_dropout", self.site + 3))
        return ctx.drop(y, "residual_dropout", self.site + 4)

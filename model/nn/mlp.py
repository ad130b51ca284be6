"""The MLP of a block.

Shapes: B sequences, T tokens, C residual width.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from model.nn.architecture import Transformer
from model.nn.context import ForwardContext


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


class MLP(nn.Module):
    """Two linear layers, or the three linear layers of swiglu."""

    def __init__(self, config: Transformer, layer: int) -> None:
        super().__init__()
        C, hidden = config.n_embd, config.hidden()
        self.kind, self.site = config.mlp, 4 * layer
        self.fc = nn.Linear(C, hidden, bias=config.bias)
        self.gate = nn.Linear(C, hidden, bias=config.bias) if config.mlp == "swiglu" else None
        self.proj = nn.Linear(hidden, C, bias=config.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        h = activate(self.kind, self.fc(x), None if self.gate is None else self.gate(x))
        y = self.proj(ctx.drop(h, "mlp_dropout", self.site + 3))
        return ctx.drop(y, "residual_dropout", self.site + 4)

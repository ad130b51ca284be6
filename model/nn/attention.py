"""Causal self-attention, fused or with its weights written out.

Shapes: B sequences, T tokens, C residual width, H heads, D = C // H, K runs.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.data.tokenizer import END
from model.nn.architecture import Transformer
from model.nn.context import ForwardContext


def documents(tokens: Tensor) -> Tensor:
    """Return where a query may see a key, (B, 1, T, T): no later one and none of another document. tokens: (B, T)."""
    T = tokens.shape[1]
    number = (tokens == END).cumsum(1)  # (B, T): a document begins at its end token, which stands before it
    past = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril()
    return ((number[:, :, None] == number[:, None, :]) & past)[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class Folded(torch.autograd.Function):
    """Fused attention that under vmap folds the runs into the batch.

    Attention has no vmap rule on a CPU: without this, vmap would loop over the runs and warn.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attend(q, k, v, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        raise AssertionError("outside of vmap, attention is called directly")

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *given: Tensor | None) -> tuple[Tensor, int]:
        K = info.batch_size

        def folded(t: Tensor | None, dim: int | None) -> Tensor | None:
            if t is None:
                return None
            # In validation all runs see the same tokens, hence one mask.
            return (t.expand(K, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)

        q, k, v, mask = map(folded, given, dims)
        assert q is not None
        assert k is not None
        assert v is not None
        return attend(q, k, v, mask).unflatten(0, (K, -1)), 0  # (K, B, H, T, D)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of x by their position. x: (B, H, T, D); cos, sin: (T, D/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, shape: Transformer, layer: int) -> None:
        super().__init__()
        C = shape.n_embd
        self.n_head, self.site = shape.n_head, 4 * layer
        self.qkv = nn.Linear(C, 3 * C, bias=shape.bias)
        self.proj = nn.Linear(C, C, bias=shape.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        if ctx.rotary is not None:
            q, k = rotate(q, *ctx.rotary), rotate(k, *ctx.rotary)
        if "attention_entropy" in ctx.diagnostics:
            entropy = torch.special.entr(self.weights(q, k, ctx.mask)).sum(-1).mean(1)  # (B, T)
            seen = entropy if ctx.valid is None else entropy[ctx.valid]
            ctx.diagnostics["attention_entropy"].append(seen.mean().detach())
        explicit = ctx.explicit or "attention_dropout" in ctx.active
        y = self.weighted(q, k, v, ctx) if explicit else self.fused(q, k, v, ctx.mask)
        y = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return ctx.drop(y, "residual_dropout", self.site + 2)

    def fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if torch._C._functorch.is_batchedtensor(q):
            return Folded.apply(q, k, v, mask)  # type: ignore[no-untyped-call]
        return attend(q, k, v, mask)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Return how much each query takes of each key, (B, H, T, T)."""
        T, D = q.shape[-2:]
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(D)
        hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1) if mask is None else ~mask
        return scores.masked_fill(hidden, -torch.inf).float().softmax(-1)

    def weighted(self, q: Tensor, k: Tensor, v: Tensor, ctx: ForwardContext) -> Tensor:
        """Attend with the weights written out, since dropout must act on them."""
        weights = ctx.drop(self.weights(q, k, ctx.mask), "attention_dropout", self.site + 1)
        return weights.to(v.dtype) @ v

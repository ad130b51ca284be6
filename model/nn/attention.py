"""Causal self-attention, with a fused kernel or with explicit attention weights.

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


def document_mask(tokens: Tensor) -> Tensor:
    """Return where a query may attend to a key, (B, 1, T, T): to keys of the same document that are not later.

    tokens: (B, T).
    """
    T = tokens.shape[1]
    number = (tokens == END).cumsum(1)  # (B, T): the end token before a document belongs to it
    past = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril()
    return ((number[:, :, None] == number[:, None, :]) & past)[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return fused attention, (B, H, T, D). q, k, v: (B, H, T, D). mask: (B, 1, T, T); None: causal."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class FoldedAttention(torch.autograd.Function):
    """Fused attention with a vmap rule that folds the runs into the batch.

    PyTorch has no vmap rule for attention on a CPU. Without this one, vmap would loop over the runs and warn.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attend(q, k, v, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        raise AssertionError("outside vmap, attend() is called directly")

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *tensors: Tensor | None) -> tuple[Tensor, int]:
        K = info.batch_size

        def folded(t: Tensor | None, dim: int | None) -> Tensor | None:
            if t is None:
                return None
            # In validation, all runs have the same tokens and therefore share one mask.
            return (t.expand(K, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)

        q, k, v, mask = map(folded, tensors, dims)
        assert q is not None
        assert k is not None
        assert v is not None
        return attend(q, k, v, mask).unflatten(0, (K, -1)), 0  # (K, B, H, T, D)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x by their position. x: (B, H, T, D). cos, sin: (T, D/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, config: Transformer, layer: int) -> None:
        super().__init__()
        C = config.n_embd
        self.n_head, self.site = config.n_head, 4 * layer
        self.qkv = nn.Linear(C, 3 * C, bias=config.bias)
        self.proj = nn.Linear(C, C, bias=config.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        if ctx.rotary is not None:
            q, k = rotate(q, *ctx.rotary), rotate(k, *ctx.rotary)
        if "attention_entropy" in ctx.diagnostics:
            entropy = torch.special.entr(self.weights(q, k, ctx.mask)).sum(-1).mean(1)  # (B, T)
            valid = entropy if ctx.valid is None else entropy[ctx.valid]
            ctx.diagnostics["attention_entropy"].append(valid.mean().detach())
        explicit = ctx.explicit or "attention_dropout" in ctx.active
        y = self.explicit(q, k, v, ctx) if explicit else self.fused(q, k, v, ctx.mask)
        y = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return ctx.drop(y, "residual_dropout", self.site + 2)

    def fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with the fused kernel."""
        if torch._C._functorch.is_batchedtensor(q):
            return FoldedAttention.apply(q, k, v, mask)  # type: ignore[no-untyped-call]
        return attend(q, k, v, mask)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention weight of each key for each query, (B, H, T, T)."""
        T, D = q.shape[-2:]
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(D)
        hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1) if mask is None else ~mask
        return scores.masked_fill(hidden, -torch.inf).float().softmax(-1)

    def explicit(self, q: Tensor, k: Tensor, v: Tensor, ctx: ForwardContext) -> Tensor:
        """Attend with explicit attention weights, on which dropout can act."""
        weights = ctx.drop(self.weights(q, k, ctx.mask), "attention_dropout", self.site + 1)
        return weights.to(v.dtype) @ v

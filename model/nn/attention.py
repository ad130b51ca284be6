"""Causal self-attention, with a fused kernel or with explicit attention weights.

Shapes: K runs, B sequences, T tokens, C residual width, H heads, D = C // H. S = K B: the sequences of all runs.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from model.data.tokenizer import END
from model.nn.architecture import Transformer
from model.nn.context import ForwardContext, Weights, mean_over_tokens
from model.nn.linear import linear
from model.nn.parametrization import attention_scale


def attention(x: Tensor, w: Weights, layer: int, config: Transformer, ctx: ForwardContext) -> Tensor:
    """Apply causal multi-head self-attention (Vaswani et al. 2017), (K, B T, C). x: (K, B T, C)."""
    (K, B, T), C, name = ctx.shape, config.n_embd, f"blocks.{layer}.attn"
    qkv = linear(x, w, f"{name}.qkv").view(K * B, T, 3, config.n_head, C // config.n_head)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (S, H, T, D)
    if ctx.rotary is not None:
        q, k = rotate(q, *ctx.rotary), rotate(k, *ctx.rotary)
    if "attention_entropy" in ctx.diagnostics:
        entropy = (
            torch.special.entr(attention_weights(q, k, ctx.mask, attention_scale(config))).sum(-1).mean(1)
        )  # (S, T)
        ctx.diagnostics["attention_entropy"].append(mean_over_tokens(entropy.view(K, B * T), ctx.valid).detach())
    if ctx.explicit or "attention_dropout" in ctx.active:
        y = explicit_attention(q, k, v, layer, ctx, attention_scale(config))
    else:
        y = fused_attention(q, k, v, ctx.mask, attention_scale(config))
    y = linear(y.transpose(1, 2).reshape(K, B * T, C), w, f"{name}.proj")
    return ctx.drop(y, "residual_dropout", 4 * layer + 2)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """Attend with a fused kernel, (S, H, T, D). q, k, v: (S, H, T, D). mask: (S, 1, T, T); None: causal.

    scale: factor on the scores. None: 1 / sqrt(D).
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, layer: int, ctx: ForwardContext, scale: float | None = None
) -> Tensor:
    """Attend with explicit attention weights, on which dropout can act, (S, H, T, D). q, k, v: (S, H, T, D)."""
    weights = ctx.drop(attention_weights(q, k, ctx.mask, scale), "attention_dropout", 4 * layer + 1)
    return weights.to(v.dtype) @ v


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """Return the attention weight of each key for each query, (S, H, T, T). scale: factor on the scores."""
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1)
    scores = scores / math.sqrt(D) if scale is None else scores * scale
    hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1) if mask is None else ~mask
    return scores.masked_fill(hidden, -torch.inf).float().softmax(-1)


def document_mask(tokens: Tensor) -> Tensor:
    """Return where a query may attend to a key, (S, 1, T, T): to keys of the same document that are not later.

    tokens: (S, T).
    """
    T = tokens.shape[1]
    number = (tokens == END).cumsum(1)  # (S, T): the end token before a document belongs to it
    past = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril()
    return ((number[:, :, None] == number[:, None, :]) & past)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x by their position. x: (S, H, T, D). cos, sin: (T, D/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)

"""The network of model/gpt.py, as one plain module that knows nothing of the runs of a pack.

Shapes: B sequences, T tokens, C residual width, H heads, D = C // H, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.dropout import dropout
from model.gpt import GPT
from model.regularization import SITES, Site
from model.seeds import derive

ROPE_THETA = 10_000.0


class Causal(torch.autograd.Function):
    """Fused causal attention that under vmap folds the runs into the batch.

    Attention has no vmap rule on a CPU: without this, vmap would loop over the runs and warn.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        raise AssertionError("outside of vmap, attention is called directly")

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, int]:
        assert None not in dims
        q, k, v = (t.movedim(d or 0, 0).flatten(0, 1) for t, d in zip((q, k, v), dims, strict=True))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (K B, H, T, D)
        return y.unflatten(0, (info.batch_size, -1)), 0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of x by their position. x: (B, H, T, D); cos, sin: (T, D/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019), in fp32."""

    def __init__(self, shape: GPT) -> None:
        super().__init__()
        self.kind, self.eps = shape.norm, shape.norm_eps
        self.weight = nn.Parameter(torch.empty(shape.n_embd))
        self.bias = nn.Parameter(torch.empty(shape.n_embd)) if shape.bias and shape.norm == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rmsnorm":
            return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps)
        return F.layer_norm(x.float(), x.shape[-1:], self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, shape: GPT, layer: int) -> None:
        super().__init__()
        C = shape.n_embd
        self.n_head, self.site = shape.n_head, 4 * layer
        self.qkv = nn.Linear(C, 3 * C, bias=shape.bias)
        self.proj = nn.Linear(C, C, bias=shape.bias)

    def forward(self, x: Tensor, net: "Network") -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        if net.shape.position == "rope":
            q, k = rotate(q, net.cos[:T], net.sin[:T]), rotate(k, net.cos[:T], net.sin[:T])
        y = self.weighted(q, k, v, net) if net.drops("attention") else self.fused(q, k, v)
        y = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return net.drop(y, "residual", self.site + 2)

    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if torch._C._functorch.is_batchedtensor(q):
            return Causal.apply(q, k, v)  # type: ignore[no-untyped-call]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def weighted(self, q: Tensor, k: Tensor, v: Tensor, net: "Network") -> Tensor:
        """Attend with the weights written out, since dropout must act on them."""
        T, D = q.shape[-2:]
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(D)  # (B, H, T, T)
        future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        weights = scores.masked_fill(future, -torch.inf).float().softmax(-1)
        return net.drop(weights, "attention", self.site + 1).to(v.dtype) @ v


class MLP(nn.Module):
    """Two layers, or the gated three of swiglu."""

    def __init__(self, shape: GPT, layer: int) -> None:
        super().__init__()
        C, hidden = shape.n_embd, shape.hidden()
        self.kind, self.site = shape.mlp, 4 * layer
        self.fc = nn.Linear(C, hidden, bias=shape.bias)
        self.gate = nn.Linear(C, hidden, bias=shape.bias) if shape.mlp == "swiglu" else None
        self.proj = nn.Linear(hidden, C, bias=shape.bias)

    def forward(self, x: Tensor, net: "Network") -> Tensor:
        h = self.fc(x)
        if self.gate is not None:
            h = F.silu(self.gate(x)) * h
        elif self.kind == "gelu":
            h = F.gelu(h)
        else:
            h = F.relu(h)
            h = h * h if self.kind == "relu2" else h
        y = self.proj(net.drop(h, "mlp", self.site + 3))
        return net.drop(y, "residual", self.site + 4)


class Block(nn.Module):
    """Attention and mlp, each normalised before and added to the residual stream."""

    def __init__(self, shape: GPT, layer: int) -> None:
        super().__init__()
        self.norm1, self.attn = Norm(shape), Attention(shape, layer)
        self.norm2, self.mlp = Norm(shape), MLP(shape, layer)

    def forward(self, x: Tensor, net: "Network") -> Tensor:
        x = x + self.attn(self.norm1(x), net)
        return x + self.mlp(self.norm2(x), net)


class Network(nn.Module):
    """Token ids in, logits out.

    Dropout probabilities and the key of their masks are 0-D buffers, so that the runs of a pack may differ in them.
    """

    key: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, shape: GPT, vocab_size: int, seed: int) -> None:
        super().__init__()
        self.shape, self.sites = shape, frozenset[Site]()
        C, T = shape.n_embd, shape.context
        self.wte = nn.Embedding(vocab_size, C)
        self.wpe = nn.Embedding(T, C) if shape.position == "learned" else None
        self.blocks = nn.ModuleList([Block(shape, layer) for layer in range(shape.n_layer)])
        self.norm = Norm(shape)
        self.head = None if shape.tied else nn.Linear(C, vocab_size, bias=False)
        self.register_buffer("key", torch.zeros((), dtype=torch.int32))
        for site in SITES:
            self.register_buffer(f"{site}_dropout", torch.zeros(()))
        D = C // shape.n_head
        angle = torch.arange(T)[:, None] * ROPE_THETA ** (-torch.arange(0, D - 1, 2) / D)  # (T, D/2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw every parameter from a stream of its own, so that one more layer changes no other layer.

        Source: Radford et al. 2019, section 2.3, for the smaller start of residual projections.
        """
        for name, p in self.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            residual = name.endswith("proj.weight")
            std = self.shape.init_std / (math.sqrt(2 * self.shape.n_layer) if residual else 1)
            generator = torch.Generator().manual_seed(derive(seed, f"weights/{name}") % 2**63)
            p.normal_(0.0, std, generator=generator)

    def drops(self, site: Site) -> bool:
        """Return whether anything is dropped here, by any run of the pack."""
        return self.training and site in self.sites

    def drop(self, x: Tensor, site: Site, number: int) -> Tensor:
        if not self.drops(site):
            return x
        return dropout(x, getattr(self, f"{site}_dropout"), self.key, number)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, (B, T, V). tokens: (B, T)."""
        x = self.wte(tokens)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe.weight[: tokens.shape[1]]
        x = self.drop(x, "embedding", 0)
        for block in self.blocks:
            x = block(x, self)
        x = self.norm(x)
        return F.linear(x, self.wte.weight) if self.head is None else self.head(x)

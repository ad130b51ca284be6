"""The network of model/gpt.py, as one plain module that knows nothing of the runs of a pack.

Shapes: B sequences, T tokens, C residual width, H heads, D = C // H, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.data.tokenizer import END
from model.nn.architecture import MoE, Transformer
from model.nn.attention import Attention, documents
from model.nn.dropout import dropout, normal, replaced
from model.nn.init import initialise
from model.nn.mlp import MLP
from model.nn.moe import Experts
from model.nn.regularization import Regularization

ROPE_THETA = 10_000.0
# Sites of random numbers, see model/dropout.py; those of layers are 1 and up. REPLACED takes the next one too.
HEAD, NOISE, REPLACED = 65_536, 65_537, 65_538


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019), in fp32."""

    def __init__(self, shape: Transformer) -> None:
        super().__init__()
        self.kind, self.eps, C = shape.norm, shape.norm_eps, shape.n_embd
        self.scalar = shape.norm_gain == "scalar"
        gains = torch.empty(1 if self.scalar else C)
        self.weight = None if shape.norm_gain == "none" else nn.Parameter(gains)
        self.bias = nn.Parameter(torch.empty(C)) if shape.bias and shape.norm == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        x, width = x.float(), x.shape[-1:]
        weight = self.weight.expand(width) if self.scalar and self.weight is not None else self.weight
        if self.kind == "rmsnorm":
            return F.rms_norm(x, width, weight, self.eps)
        return F.layer_norm(x, width, weight, self.bias, self.eps)


class Pass(NamedTuple):
    """One forward pass, to its layers."""

    net: "Network"
    mask: Tensor | None
    """Where a query may see a key, (B, 1, T, T); none: all that is not later."""
    notes: dict[str, list[Tensor]]
    """What layers say besides; a layer appends where its key is there."""
    valid: Tensor | None = None
    """Which tokens are no padding, (B, T), for the notes; none: all."""


class Block(nn.Module):
    """Attention and mlp, each normalised before and added to the residual stream."""

    def __init__(self, shape: Transformer, layer: int) -> None:
        super().__init__()
        self.norm1, self.attn = Norm(shape), Attention(shape, layer)
        self.norm2 = Norm(shape)
        self.mlp = Experts(shape, layer) if isinstance(shape, MoE) else MLP(shape, layer)

    def forward(self, x: Tensor, now: Pass) -> Tensor:
        x = x + self.attn(self.norm1(x), now)
        return x + self.mlp(self.norm2(x), now)


class Network(nn.Module):
    """Token ids in, logits out.

    The numbers that act inside, such as dropout probabilities, and the key of all its random numbers are 0-D buffers,
    so that the runs of a pack may differ in them.
    """

    key: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Transformer, vocab_size: int, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.active = frozenset[str]()  # which numbers are above 0 in any run of the pack
        self.explicit = False  # whether attention weights are always written out
        self.padded = False  # whether what follows a document in its row is padding
        C, T, L = shape.n_embd, shape.context, shape.n_layer
        self.wte = nn.Embedding(vocab_size, C)
        self.wpe = nn.Embedding(T, C) if shape.position == "learned" else None
        self.embedding_projection = nn.Linear(C, C, bias=False) if shape.embedding_projection else None
        self.embedding_norm = Norm(shape) if shape.embedding_norm else None
        self.blocks = nn.ModuleList([Block(shape, layer) for layer in range(L)])
        self.skip_weights = nn.Parameter(torch.empty(L // 2)) if shape.skips != "none" else None
        self.norm = Norm(shape) if shape.final_norm else None
        self.head_projection = nn.Linear(C, C, bias=False) if shape.embedding_projection else None
        self.head = None if shape.tied else nn.Linear(C, vocab_size, bias=False)
        self.register_buffer("key", torch.zeros((), dtype=torch.int32))
        for name in (*Regularization().numbers(), *shape.numbers()):
            self.register_buffer(name, torch.zeros(()))
        D = C // shape.n_head
        angle = torch.arange(T)[:, None] * ROPE_THETA ** (-torch.arange(0, D - 1, 2) / D)  # (T, D/2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        initialise(self, seed)

    def acts(self, name: str) -> bool:
        """Return whether a number is above 0 in any run of the pack, and this is training."""
        return self.training and name in self.active

    def drop(self, x: Tensor, name: str, site: int) -> Tensor:
        return dropout(x, self.get_buffer(name), self.key, site) if self.acts(name) else x

    def forward(self, tokens: Tensor, notes: dict[str, list[Tensor]] | None = None) -> Tensor:
        """Return the logits of the next token, (B, T, V). tokens: (B, T).

        notes: what layers say besides is appended where its key is there: "balance", the weighted loss of a mixture in
        training; "attention_entropy", nats; "expert_load", (E,), share of assignments; "kurtosis" of the residual
        stream, 0 for a Gaussian. One tensor for each layer.
        """
        mask = documents(tokens) if self.shape.document_mask else None
        # Padding has the id of the end token, which in a row of its own document stands only at the beginning.
        first = torch.arange(tokens.shape[1], device=tokens.device) == 0
        valid = (tokens != END) | first if self.padded and notes else None
        now = Pass(self, mask, {} if notes is None else notes, valid)
        x = self.run(self.embed(tokens, mask), now)  # (B, T, C)
        if self.norm is not None:
            x = self.norm(x)
        if self.head_projection is not None:
            x = self.head_projection(x)
        x = self.drop(x, "head_dropout", HEAD)
        return F.linear(x, self.wte.weight) if self.head is None else self.head(x)

    def embed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if self.acts("mask_tokens"):
            tokens = replaced(tokens, self.get_buffer("mask_tokens"), self.wte.num_embeddings, self.key, REPLACED)
        x = self.wte(tokens)  # (B, T, C)
        if self.shape.scale_embedding:
            x = x * math.sqrt(self.shape.n_embd)
        if self.acts("embedding_noise"):
            size = self.get_buffer("embedding_noise") * x.detach().pow(2).mean(-1, keepdim=True).sqrt()
            x = x + size * normal(x.numel(), self.key, NOISE).view(x.shape)
        if self.wpe is not None:
            # A token sees those of its document up to itself.
            restarting = None if mask is None else mask.sum(-1)[:, 0] - 1  # (B, T)
            x = x + (self.wpe.weight[: tokens.shape[1]] if restarting is None else self.wpe(restarting))
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return self.drop(x, "embedding_dropout", 0)

    def run(self, x: Tensor, now: Pass) -> Tensor:
        """Pass the residual stream through all blocks; with skips the second half takes in what the first gave out."""
        half, kept = self.shape.n_layer // 2, []
        for i, block in enumerate(self.blocks):
            x = block(x, now)
            if self.skip_weights is not None:
                if i < half:
                    kept.append(x)
                else:
                    x = self.mixed(x, kept.pop(), self.skip_weights[2 * half - 1 - i])
            if "kurtosis" in now.notes:
                seen = x if now.valid is None else x[now.valid]
                now.notes["kurtosis"].append(excess_kurtosis(seen.detach().float()))
        return x

    def mixed(self, x: Tensor, skip: Tensor, a: Tensor) -> Tensor:
        if self.shape.skips == "additive":
            return x + a * skip
        share = a.sigmoid()
        return (1 - share) * x + share * skip


def excess_kurtosis(x: Tensor) -> Tensor:
    """Return the fourth moment of all elements about their mean, over their squared variance, less 3; 0-D."""
    squares = (x - x.mean()).pow(2)
    return squares.pow(2).mean() / squares.mean().pow(2) - 3

"""The network that model/nn/architecture.py configures. It is a plain module of one run; model/train/pack.py runs K.

Shapes: B sequences, T tokens, C residual width, H heads, D = C // H, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.data.tokenizer import END
from model.nn.architecture import MoE, Transformer
from model.nn.attention import Attention, document_mask
from model.nn.context import Diagnostics, ForwardContext
from model.nn.dropout import random_normal, replace_tokens
from model.nn.init import init_weights
from model.nn.mlp import MLP
from model.nn.moe import Experts
from model.nn.regularization import Regularization

ROPE_THETA = 10_000.0
# Sites of random numbers, see model/nn/dropout.py. Layers have the sites from 1 on. REPLACED uses the next site too.
HEAD, NOISE, REPLACED = 65_536, 65_537, 65_538


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019), in fp32."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        self.kind, self.eps, C = config.norm, config.norm_eps, config.n_embd
        self.scalar = config.norm_gain == "scalar"
        gains = torch.empty(1 if self.scalar else C)
        self.weight = None if config.norm_gain == "none" else nn.Parameter(gains)
        self.bias = nn.Parameter(torch.empty(C)) if config.bias and config.norm == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        x, width = x.float(), x.shape[-1:]
        weight = self.weight.expand(width) if self.scalar and self.weight is not None else self.weight
        if self.kind == "rmsnorm":
            return F.rms_norm(x, width, weight, self.eps)
        return F.layer_norm(x, width, weight, self.bias, self.eps)


class Block(nn.Module):
    """Attention and MLP, each with normalization before it and a residual connection around it."""

    def __init__(self, config: Transformer, layer: int) -> None:
        super().__init__()
        self.norm1, self.attn = Norm(config), Attention(config, layer)
        self.norm2 = Norm(config)
        self.mlp = Experts(config, layer) if isinstance(config, MoE) else MLP(config, layer)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        x = x + self.attn(self.norm1(x), ctx)
        return x + self.mlp(self.norm2(x), ctx)


class Network(nn.Module):
    """A GPT: maps token ids to logits.

    Numbers such as dropout probabilities and the key of the random numbers are 0-D buffers, so that the runs of a pack
    can differ in them.
    """

    key: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, config: Transformer, vocab_size: int, seed: int) -> None:
        super().__init__()
        self.config = config
        self.active = frozenset[str]()  # names of the numbers above 0 in any run of the pack
        self.explicit = False  # whether attention weights are always computed explicitly
        self.padded = False  # whether rows hold one document each, followed by padding
        C, T, L = config.n_embd, config.context, config.n_layer
        self.wte = nn.Embedding(vocab_size, C)
        self.wpe = nn.Embedding(T, C) if config.position == "learned" else None
        self.embedding_projection = nn.Linear(C, C, bias=False) if config.embedding_projection else None
        self.embedding_norm = Norm(config) if config.embedding_norm else None
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(L)])
        self.skip_weights = nn.Parameter(torch.empty(L // 2)) if config.skips != "none" else None
        self.norm = Norm(config) if config.final_norm else None
        self.head_projection = nn.Linear(C, C, bias=False) if config.embedding_projection else None
        self.head = None if config.tied else nn.Linear(C, vocab_size, bias=False)
        self.register_buffer("key", torch.zeros((), dtype=torch.int32))
        for name in (*Regularization().numbers(), *config.numbers()):
            self.register_buffer(name, torch.zeros(()))
        D = C // config.n_head
        angle = torch.arange(T)[:, None] * ROPE_THETA ** (-torch.arange(0, D - 1, 2) / D)  # (T, D/2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        init_weights(self, config, seed)

    def forward(self, tokens: Tensor, diagnostics: Diagnostics | None = None) -> Tensor:
        """Return the logits of the next token, (B, T, V). tokens: (B, T).

        diagnostics: the layers append one tensor each to the keys that are present. "balance": weighted load-balancing
        loss, in training. "attention_entropy": in nats. "expert_load": fraction of the assignments, (E,). "kurtosis":
        excess kurtosis of the residual stream.
        """
        mask = document_mask(tokens) if self.config.document_mask else None
        # Padding has the id of the end token. In a row with one document, the end token itself is only at the start.
        first = torch.arange(tokens.shape[1], device=tokens.device) == 0
        valid = (tokens != END) | first if self.padded and diagnostics else None
        ctx = self.context(tokens.shape[1], mask, diagnostics, valid)
        x = self.run(self.embed(tokens, ctx), ctx)  # (B, T, C)
        if self.norm is not None:
            x = self.norm(x)
        if self.head_projection is not None:
            x = self.head_projection(x)
        x = ctx.drop(x, "head_dropout", HEAD)
        return F.linear(x, self.wte.weight) if self.head is None else self.head(x)

    def context(
        self, T: int, mask: Tensor | None = None, diagnostics: Diagnostics | None = None, valid: Tensor | None = None
    ) -> ForwardContext:
        """Return the context of a forward pass over T tokens."""
        return ForwardContext(
            numbers={name: self.get_buffer(name) for name in self.active},
            active=self.active if self.training else frozenset(),
            key=self.key,
            rotary=(self.cos[:T], self.sin[:T]) if self.config.position == "rope" else None,
            explicit=self.explicit,
            mask=mask,
            diagnostics={} if diagnostics is None else diagnostics,
            valid=valid,
        )

    def embed(self, tokens: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the input of the first block, (B, T, C). tokens: (B, T)."""
        if "mask_tokens" in ctx.active:
            tokens = replace_tokens(tokens, ctx.numbers["mask_tokens"], self.wte.num_embeddings, ctx.key, REPLACED)
        x = self.wte(tokens)  # (B, T, C)
        if self.config.scale_embedding:
            x = x * math.sqrt(self.config.n_embd)
        if "embedding_noise" in ctx.active:
            size = ctx.numbers["embedding_noise"] * x.detach().pow(2).mean(-1, keepdim=True).sqrt()
            x = x + size * random_normal(x.numel(), ctx.key, NOISE).view(x.shape)
        if self.wpe is not None:
            # The mask of a token has as many ones as its document has tokens so far.
            positions = None if ctx.mask is None else ctx.mask.sum(-1)[:, 0] - 1  # (B, T)
            x = x + (self.wpe.weight[: tokens.shape[1]] if positions is None else self.wpe(positions))
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return ctx.drop(x, "embedding_dropout", 0)

    def run(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the output of the last block, (B, T, C). x: input of the first block, (B, T, C)."""
        half, outputs = self.config.n_layer // 2, []
        for i, block in enumerate(self.blocks):
            x = block(x, ctx)
            if self.skip_weights is not None:
                if i < half:
                    outputs.append(x)
                else:
                    x = self.add_skip(x, outputs.pop(), self.skip_weights[2 * half - 1 - i])
            if "kurtosis" in ctx.diagnostics:
                valid = x if ctx.valid is None else x[ctx.valid]
                ctx.diagnostics["kurtosis"].append(excess_kurtosis(valid.detach().float()))
        return x

    def add_skip(self, x: Tensor, skip: Tensor, a: Tensor) -> Tensor:
        """Combine the residual stream with a skip connection of learned weight a, 0-D. x, skip: (B, T, C)."""
        if self.config.skips == "additive":
            return x + a * skip
        share = a.sigmoid()
        return (1 - share) * x + share * skip


def excess_kurtosis(x: Tensor) -> Tensor:
    """Return the excess kurtosis of all elements, 0-D: fourth central moment over squared variance, minus 3."""
    squares = (x - x.mean()).pow(2)
    return squares.pow(2).mean() / squares.mean().pow(2) - 3


def build_network(config: Transformer, vocab_size: int, seed: int) -> Network:
    """Return the network with its initial weights. Inside `with torch.device("meta")`, it has no weights."""
    return Network(config, vocab_size, seed)

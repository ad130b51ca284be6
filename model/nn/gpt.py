"""The network that model/nn/architecture.py configures, for K runs of equal shape at once.

Shapes: K runs, B sequences, T tokens, N = B T, C residual width, H heads, D = C // H, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from model.data.tokenizer import END
from model.nn.architecture import MoE, Transformer
from model.nn.attention import attention, document_mask
from model.nn.context import Diagnostics, ForwardContext, Weights, mean_over_tokens
from model.nn.dropout import random_normal, replace_tokens
from model.nn.linear import linear, normalize, project
from model.nn.mlp import mlp
from model.nn.moe import experts
from model.nn.parametrization import embedding_scale, factors
from model.nn.shapes import parameter_shapes

ROPE_THETA = 10_000.0
# Sites of random numbers, see model/nn/dropout.py. Layers have the sites from 1 on. REPLACED uses the next site too.
HEAD, NOISE, REPLACED = 65_536, 65_537, 65_538


class Network:
    """A GPT: maps token ids to logits. It holds no weights, which are passed to each call with a leading run axis."""

    def __init__(
        self,
        config: Transformer,
        vocab_size: int,
        device: torch.device | None = None,
        padded: bool = False,
        explicit: bool = False,
    ) -> None:
        """Compute the shapes of the parameters.

        padded: whether rows hold one document each, followed by padding. explicit: whether attention weights are
        always computed explicitly.
        """
        self.config, self.vocab_size, self.padded, self.explicit = config, vocab_size, padded, explicit
        self.shapes, self.factors = parameter_shapes(config, vocab_size), factors(config)
        self.no_key = torch.zeros(1, dtype=torch.int32, device=device)
        D = config.n_embd // config.n_head
        position = torch.arange(config.context, device=device)[:, None]
        angle = position * ROPE_THETA ** (-torch.arange(0, D - 1, 2, device=device) / D)  # (T, D/2)
        self.cos, self.sin = angle.cos(), angle.sin()

    def __call__(
        self,
        w: Weights,
        tokens: Tensor,
        numbers: Mapping[str, Tensor] | None = None,
        key: Tensor | None = None,
        diagnostics: Diagnostics | None = None,
    ) -> Tensor:
        """Return the logits of the next token, (K, N, V). tokens: (K, B, T).

        numbers: in training, the numbers that are above 0 in any run of the pack, such as dropout probabilities, (K,)
        each. key: key of the random numbers of each run, (K,) int32; needed with numbers.

        diagnostics: the layers append one tensor each to the keys that are present. "balance": weighted load-balancing
        loss, (K,), if it is one of `numbers`. "attention_entropy": in nats, (K,). "expert_load": fraction of the
        assignments, (K, E). "kurtosis": excess kurtosis of the residual stream, (K,). "size": mean absolute
        value of the activations, (K,): embeddings; in each block outputs of attention and MLP, and the residual stream
        after it; logits.
        """
        ctx = self.context(tokens, numbers, key, diagnostics)
        x = self.run(w, ctx.measure_size(self.embed(w, tokens, ctx)), ctx)  # (K, N, C)
        if self.config.final_norm:
            x = normalize(x, w, "norm", self.config)
        if self.config.embedding_projection:
            x = linear(x, w, "head_projection")
        x = scale(ctx.drop(x, "head_dropout", HEAD), self.factors.logits)
        return ctx.measure_size(project(x, w["wte.weight" if self.config.tied else "head.weight"]))

    def context(
        self,
        tokens: Tensor,
        numbers: Mapping[str, Tensor] | None = None,
        key: Tensor | None = None,
        diagnostics: Diagnostics | None = None,
    ) -> ForwardContext:
        """Return the context of a forward pass. The arguments are those of a call."""
        K, B, T = tokens.shape
        return ForwardContext(
            shape=(K, B, T),
            numbers=numbers or {},
            active=frozenset(numbers or {}),
            key=self.no_key if key is None else key,
            rotary=(self.cos[:T], self.sin[:T]) if self.config.position == "rope" else None,
            explicit=self.explicit,
            mask=document_mask(tokens.flatten(0, 1)) if self.config.document_mask else None,
            diagnostics=diagnostics or {},
            valid=not_padding(tokens) if self.padded and diagnostics else None,
        )

    def embed(self, w: Weights, tokens: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the input of the first block, (K, N, C). tokens: (K, B, T)."""
        K, B, T = tokens.shape
        C = self.config.n_embd
        if "mask_tokens" in ctx.active:
            tokens = replace_tokens(tokens, ctx.numbers["mask_tokens"], self.vocab_size, ctx.key, REPLACED)
        x = look_up(w["wte.weight"], tokens)  # (K, B, T, C)
        if self.config.scale_embedding:
            x = x * embedding_scale(self.config)
        if "embedding_noise" in ctx.active:
            size = ctx.numbers["embedding_noise"].view(K, 1, 1, 1) * x.detach().pow(2).mean(-1, keepdim=True).sqrt()
            x = x + size * random_normal(B * T * C, ctx.key, NOISE).view(x.shape)
        if self.config.position == "learned":
            x = x + self.positions(w["wpe.weight"], ctx)
        x = x.view(K, B * T, C)
        if self.config.embedding_projection:
            x = linear(x, w, "embedding_projection")
        if self.config.embedding_norm:
            x = normalize(x, w, "embedding_norm", self.config)
        return ctx.drop(x, "embedding_dropout", 0)

    def positions(self, wpe: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the position embeddings of all tokens, (K, B or 1, T, C). wpe: (K, context, C)."""
        if ctx.mask is None:
            return wpe[:, None, : ctx.shape[2]]
        # The mask of a token has as many ones as its document has tokens so far.
        return look_up(wpe, (ctx.mask.sum(-1) - 1).view(ctx.shape))

    def run(self, w: Weights, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the output of the last block, (K, N, C). x: input of the first block, (K, N, C)."""
        half, outputs = self.config.n_layer // 2, []
        for layer in range(self.config.n_layer):
            x = self.block(w, x, layer, ctx)
            if self.config.skips != "none":
                if layer < half:
                    outputs.append(x)
                else:
                    x = self.add_skip(x, outputs.pop(), w["skip_weights"][:, 2 * half - 1 - layer])
            if "kurtosis" in ctx.diagnostics:
                ctx.diagnostics["kurtosis"].append(excess_kurtosis(x.detach().float(), ctx.valid))
        return x

    def block(self, w: Weights, x: Tensor, layer: int, ctx: ForwardContext) -> Tensor:
        """Apply attention and MLP, each with normalization before it and a residual connection around it.

        x: (K, N, C).
        """
        config, name = self.config, f"blocks.{layer}"
        y = attention(normalize(x, w, f"{name}.norm1", config), w, layer, config, ctx)
        x = x + scale(ctx.measure_size(y), self.factors.residual)
        h = normalize(x, w, f"{name}.norm2", config)
        y = experts(h, w, layer, config, ctx) if isinstance(config, MoE) else mlp(h, w, layer, config, ctx)
        return ctx.measure_size(x + scale(ctx.measure_size(y), self.factors.residual))

    def add_skip(self, x: Tensor, skip: Tensor, a: Tensor) -> Tensor:
        """Combine the residual stream with a skip connection of learned weight a, (K,). x, skip: (K, N, C)."""
        a = a[:, None, None]
        if self.config.skips == "additive":
            return x + a * skip
        share = a.sigmoid()
        return (1 - share) * x + share * skip


def scale(x: Tensor, factor: float) -> Tensor:
    """Return the product of a tensor and a number; a factor of 1 costs nothing."""
    return x if factor == 1 else x * factor


def look_up(table: Tensor, ids: Tensor) -> Tensor:
    """Return the rows of each run's table, (K, B, T, C). table: (K, rows, C). ids: (K, B, T)."""
    K, rows, C = table.shape
    if K > 1:
        ids = ids + torch.arange(0, K * rows, rows, device=ids.device)[:, None, None]
    return F.embedding(ids, table.reshape(K * rows, C))


def not_padding(tokens: Tensor) -> Tensor:
    """Return which tokens of rows with one document each are not padding, (K, N). tokens: (K, B, T)."""
    # Padding has the id of the end token. In a row with one document, the end token itself is only at the start.
    first = torch.arange(tokens.shape[2], device=tokens.device) == 0
    return ((tokens != END) | first).flatten(1)


def excess_kurtosis(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the excess kurtosis of all elements of each run, (K,): fourth central moment / squared variance - 3.

    x: (K, N, C). valid: which tokens are not padding, (K, N); None: all tokens.
    """
    squares = (x - mean_over_tokens(x.mean(-1), valid)[:, None, None]).pow(2)
    return mean_over_tokens(squares.pow(2).mean(-1), valid) / mean_over_tokens(squares.mean(-1), valid).pow(2) - 3

"""A small GPT, and parts of it that tests compare with formulas."""

import torch

from model.nn.architecture import GPT
from model.nn.context import ForwardContext
from tests.support.packs import OneRun, build_network

VOCAB = 31
SHAPE = GPT(n_layer=2, n_head=2, n_embd=12, context=8)
KINDS = {
    "norm": ["layernorm", "rmsnorm"],
    "position": ["learned", "rope"],
    "mlp": ["gelu", "silu", "relu", "relu2", "swiglu"],
    "bias": [False, True],
    "tied": [False, True],
}


def small_gpt(seed=0, **values) -> OneRun:
    return build_network(SHAPE.model_copy(update=values), VOCAB, seed)


def tokens(B=2, T=8):
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(1))


def passing(network) -> ForwardContext:
    return network.context(network.config.context)


def count(network) -> int:
    return sum(p.numel() for p in network.parameters())

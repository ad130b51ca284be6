"""Initial weights: each parameter from a random stream of its own, so that one more layer changes no other layer."""

import math

import torch
from torch import Generator, Tensor, nn

from model.nn.architecture import Transformer
from model.seeds import derive

CUT = 3.0  # standard deviations; where glorot is cut


@torch.no_grad()
def initialise(network: nn.Module, config: Transformer, seed: int) -> None:
    """Set every parameter that has memory."""
    for name, p in network.named_parameters():
        if p.is_meta:  # to count parameters
            continue
        generator = Generator().manual_seed(derive(seed, f"weights/{name}") % 2**63)
        if p.ndim == 1:  # biases and the weights of skips start at 0, gains at 1
            p.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("projection.weight"):
            nn.init.orthogonal_(p, generator=generator)
        elif name in ("wte.weight", "wpe.weight"):
            p.normal_(0.0, embedding_std(name, config), generator=generator)
        else:
            draw(p, name, config, generator)


def embedding_std(name: str, config: Transformer) -> float:
    own = config.position_std if name == "wpe.weight" else None
    return config.init_std if own is None else own


def draw(p: Tensor, name: str, config: Transformer, generator: Generator) -> None:
    """Draw a matrix, or the matrices of all experts.

    Source: Radford et al. 2019, section 2.3, for the smaller start of residual projections; He et al. 2015,
    arXiv:1502.01852; Glorot & Bengio 2010.
    """
    out, fan_in = p.shape[-2:]
    if name.endswith("qkv.weight"):
        out //= 3  # three matrices
    if config.init == "glorot":
        std = math.sqrt(2 / (fan_in + out))
        nn.init.trunc_normal_(p, 0.0, std, -CUT * std, CUT * std, generator=generator)
    elif config.init == "kaiming":
        p.normal_(0.0, math.sqrt(2 / fan_in), generator=generator)
    else:
        residual = config.init == "scaled" and name.endswith(("proj.weight", "mlp.proj"))
        p.normal_(0.0, config.init_std / (math.sqrt(2 * config.n_layer) if residual else 1), generator=generator)

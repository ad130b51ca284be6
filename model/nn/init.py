"""Initial weights. Each parameter has its own random stream, so that adding a layer changes no other layer."""

import math

import torch
from torch import Generator, Tensor, nn

from model.nn.architecture import Transformer
from model.seeds import derive

CUT = 3.0  # standard deviations at which glorot is truncated


@torch.no_grad()
def init_weights(network: nn.Module, config: Transformer, seed: int) -> None:
    """Initialize every parameter that is not on the meta device."""
    for name, p in network.named_parameters():
        if p.is_meta:  # networks on the meta device only count parameters
            continue
        generator = Generator().manual_seed(derive(seed, f"weights/{name}") % 2**63)
        if p.ndim == 1:  # biases and skip weights start at 0, gains at 1
            p.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("projection.weight"):
            nn.init.orthogonal_(p, generator=generator)
        elif name in ("wte.weight", "wpe.weight"):
            p.normal_(0.0, embedding_std(name, config), generator=generator)
        else:
            init_matrix(p, name, config, generator)


def embedding_std(name: str, config: Transformer) -> float:
    """Return the initial standard deviation of the embedding `name`."""
    own = config.position_std if name == "wpe.weight" else None
    return config.init_std if own is None else own


def init_matrix(p: Tensor, name: str, config: Transformer, generator: Generator) -> None:
    """Draw the initial values of one matrix, or of the matrices of all experts.

    Source: Radford et al. 2019, section 2.3 (scaled residual projections); He et al. 2015, arXiv:1502.01852 (kaiming);
    Glorot & Bengio 2010 (glorot).
    """
    out, fan_in = p.shape[-2:]
    if name.endswith("qkv.weight"):
        out //= 3  # queries, keys and values are three matrices
    if config.init == "glorot":
        std = math.sqrt(2 / (fan_in + out))
        nn.init.trunc_normal_(p, 0.0, std, -CUT * std, CUT * std, generator=generator)
    elif config.init == "kaiming":
        p.normal_(0.0, math.sqrt(2 / fan_in), generator=generator)
    else:
        residual = config.init == "scaled" and name.endswith(("proj.weight", "mlp.proj"))
        p.normal_(0.0, config.init_std / (math.sqrt(2 * config.n_layer) if residual else 1), generator=generator)

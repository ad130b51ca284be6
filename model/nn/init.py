"""Initial weights. Each parameter has its own random stream, so that adding a layer changes no other layer."""

import math

import torch
from torch import Generator, Tensor, nn

from model.nn.architecture import Transformer
from model.nn.parametrization import factors
from model.nn.shapes import parameter_shapes
from model.seeds import derive

CUT = 3.0  # standard deviations at which glorot is truncated


def initial_weights(config: Transformer, vocab_size: int, seed: int) -> dict[str, Tensor]:
    """Return the initial weights of one run by name."""
    return {
        name: _initial(name, torch.empty(shape), config, seed)
        for name, shape in parameter_shapes(config, vocab_size).items()
    }


def _initial(name: str, p: Tensor, config: Transformer, seed: int) -> Tensor:
    """Fill one parameter with its initial values."""
    generator = Generator().manual_seed(derive(seed, f"weights/{name}") % 2**63)
    if p.ndim == 1:  # biases and skip weights start at 0, gains at 1
        return p.fill_(1.0 if name.endswith("weight") else 0.0)
    if name.endswith("projection.weight"):
        return nn.init.orthogonal_(p, generator=generator)
    if name in ("wte.weight", "wpe.weight"):
        return p.normal_(0.0, embedding_std(name, config), generator=generator)
    return init_matrix(p, name, config, generator)


def embedding_std(name: str, config: Transformer) -> float:
    """Return the initial standard deviation of the embedding `name`."""
    own = config.position_std if name == "wpe.weight" else None
    return config.init_std if own is None else own


def init_matrix(p: Tensor, name: str, config: Transformer, generator: Generator) -> Tensor:
    """Draw the initial values of one matrix, or of the matrices of all experts.

    Source: Radford et al. 2019, section 2.3 (scaled residual projections); He et al. 2015, arXiv:1502.01852 (kaiming);
    Glorot & Bengio 2010 (glorot).
    """
    out, fan_in = p.shape[-2:]
    if name.endswith("qkv.weight"):
        out //= 3  # queries, keys and values are three matrices
    if config.init == "glorot":
        std = math.sqrt(2 / (fan_in + out))
        return nn.init.trunc_normal_(p, 0.0, std, -CUT * std, CUT * std, generator=generator)
    if config.init == "kaiming":
        return p.normal_(0.0, math.sqrt(2 / fan_in), generator=generator)
    # Completep has a multiplier in the network instead.
    scaled = config.init == "scaled" and config.parametrization != "completep"
    residual = scaled and name.endswith(("proj.weight", "mlp.proj"))
    std = config.init_std / (math.sqrt(2 * config.n_layer) if residual else 1)
    return p.normal_(0.0, std * factors(config).hidden_std, generator=generator)

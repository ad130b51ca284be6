"""Linear layers and normalization of K runs at once.

Shapes: K runs, N = B T tokens, C residual width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.nn.architecture import Transformer
from model.nn.context import Weights


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    """Apply the linear layer `name` of each run, (K, N, outputs). x: (K, N, inputs)."""
    return project(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias of each run, (K, N, outputs).

    x: (K, N, inputs). weight: (K, outputs, inputs). bias: (K, outputs).
    """
    if len(weight) == 1:  # a product of matrices costs less than a batch of one
        return F.linear(x, weight.squeeze(0), None if bias is None else bias.squeeze(0))
    if bias is None:
        return torch.bmm(x, weight.mT)
    return torch.baddbmm(bias[:, None], x, weight.mT)


def normalize(x: Tensor, w: Weights, name: str, config: Transformer) -> Tensor:
    """Apply the LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) `name` of each run in fp32.

    x: (K, N, C).
    """
    x, width = x.float(), (config.n_embd,)
    gain, bias = w.get(f"{name}.weight"), w.get(f"{name}.bias")
    if len(x) == 1:
        gain = None if gain is None else gain.squeeze(0).expand(width)
        bias = None if bias is None else bias.squeeze(0)
        if config.norm == "rmsnorm":
            return F.rms_norm(x, width, gain, config.norm_eps)
        return F.layer_norm(x, width, gain, bias, config.norm_eps)
    if config.norm == "rmsnorm":
        x = F.rms_norm(x, width, None, config.norm_eps)
    else:
        x = F.layer_norm(x, width, None, None, config.norm_eps)
    if gain is not None:
        x = x * gain[:, None]
    return x if bias is None else x + bias[:, None]

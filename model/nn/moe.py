"""A mixture of experts instead of the MLP: k experts compute each token (Shazeer et al. 2017, arXiv:1701.06538).

Shapes: K runs, N = B T tokens, C residual width, E experts, k experts per token, M = N k assignments of one run.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.nn.architecture import MoE
from model.nn.context import ForwardContext, Weights
from model.nn.dropout import random_normal
from model.nn.linear import project
from model.nn.mlp import activate

ALIGNMENT = 16  # bytes to whose multiples grouped_mm needs the rows of a matrix
ROUTERS = 131_072  # first site of router noise, one site per layer; all other sites are below


def experts(x: Tensor, w: Weights, layer: int, config: MoE, ctx: ForwardContext) -> Tensor:
    """Apply a mixture of experts, (K, N, C). Each expert computes only the tokens that the router assigns to it.

    Experts have no capacity limit, so no token is dropped. The experts of all runs form one list of K E experts.

    x: (K, N, C).
    """
    name, top_k = f"blocks.{layer}.mlp", config.top_k
    weights, chosen, counts = route(x, w[f"{name}.router.weight"], layer, config, ctx)
    order = chosen.flatten().argsort(stable=True)  # (K M,): the assignments, sorted by run and expert
    # Each token k times, then permuted: a gradient that adds up rows with equal indices would depend on the threads.
    inputs = x.flatten(0, 1).repeat_interleave(top_k, 0)[order]  # (K M, C)
    gate = grouped_linear(inputs, w[f"{name}.gate"], counts) if config.mlp == "swiglu" else None
    h = activate(config.mlp, grouped_linear(inputs, w[f"{name}.fc"], counts), gate)  # (K M, hidden)
    y = grouped_linear(ctx.drop(h, "mlp_dropout", 4 * layer + 3), w[f"{name}.proj"], counts)
    y = y[order.argsort()].unflatten(0, (-1, top_k))  # (K N, k, C)
    y = (y * weights.flatten(0, 1)[..., None]).sum(1).view(x.shape)
    return ctx.drop(y, "residual_dropout", 4 * layer + 4)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply each row by the matrix of its expert, (K M, out).

    The numbers of rows stay on the device. No value is read, except by the kernel of a device that needs it.

    x: (K M, in), sorted by run and expert. weight: (K, E, out, in). counts: rows of each of the K E experts, (K E,).
    """
    if torch.is_autocast_enabled(x.device.type):  # which does not convert the arguments of grouped_mm
        half = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(half), weight.to(half)
    out = weight.shape[2]
    matrices = _padded(weight.flatten(0, 1), (-1, -2))  # (K E, out, in)
    offsets = counts.cumsum(0, dtype=torch.int32)
    x = _padded(x, (-1,))
    if x.is_cuda and x.dtype == torch.bfloat16:  # which graphs may contain
        return F.grouped_mm(x, matrices.mT, offs=offsets)[:, :out]
    product: Tensor = grouped_mm(x, matrices.mT, offsets)
    return product[:, :out]


@torch.library.custom_op("hpo::grouped_mm", mutates_args=())
def grouped_mm(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """torch's grouped_mm as an operator of its own, which graphs may contain in any type and on any device.

    Up to torch 2.13, traces take torch's operator in bf16 only, and that of torch 2.10 does not compile on a CPU.

    a: (M, in), rows in G groups, and b: (G, in, out); returns (M, out). Or a: (in, M), columns in G groups, and b:
    (M, out), rows in G groups; returns (G, in, out). offsets: end of each group, (G,) int32.
    """
    return F.grouped_mm(a, b, offs=offsets)


@grouped_mm.register_fake
def _shape_of_product(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    groups = () if b.dim() == 3 else (len(offsets),)
    return a.new_empty(*groups, len(a), b.shape[-1])


def _keep_factors(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    """Return the gradients of a product of rows with the matrices of their groups."""
    a, b, offsets = ctx.saved_tensors
    grad = grad.contiguous()
    return grouped_mm(grad, b.mT, offsets), grouped_mm(a.mT, grad, offsets), None


grouped_mm.register_autograd(_gradients, setup_context=_keep_factors)


def _padded(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return a tensor with zeros after the end of the last dimensions, so that grouped_mm accepts their length.

    dims: the dimensions, the last one first.
    """
    step = ALIGNMENT // x.element_size()
    missing = [-x.shape[dim] % step for dim in dims]
    return F.pad(x, [n for after in missing for n in (0, after)]) if any(missing) else x


def route(x: Tensor, weight: Tensor, layer: int, config: MoE, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the experts of each token among the K E experts of all runs.

    x: (K, N, C). weight: of the router, (K, E, C).

    Returns weights of the experts of each token, (K, N, k), these experts, (K, N, k), and tokens per expert, (K E,).
    """
    K, E = len(x), config.n_expert
    with torch.autocast(x.device.type, enabled=False):  # half precision would produce ties
        logits = project(x.float(), weight)  # (K, N, E)
    if "router_noise" in ctx.active:
        noise = random_normal(logits[0].numel(), ctx.key, ROUTERS + layer).view(logits.shape)
        logits = logits + ctx.numbers["router_noise"][:, None, None] * noise
    best, chosen = logits.topk(config.top_k)
    probabilities = logits.softmax(-1)
    # A softmax over one logit is constant and gives the router no gradient (Fedus et al. 2021, arXiv:2101.03961).
    weights = best.softmax(-1) if config.top_k > 1 else probabilities.gather(-1, chosen)
    chosen = chosen + torch.arange(0, K * E, E, device=x.device)[:, None, None]
    _measure(probabilities, chosen, config, ctx)
    return weights, chosen, _count(chosen, torch.ones_like(chosen), K * E)


def _count(chosen: Tensor, counted: Tensor, n: int) -> Tensor:
    """Return the sum of `counted` over the assignments of each of n experts, (n,). chosen, counted: same shape."""
    return counted.new_zeros(n).scatter_add(0, chosen.flatten(), counted.flatten())


def _measure(probabilities: Tensor, chosen: Tensor, config: MoE, ctx: ForwardContext) -> None:
    """Append the load of the experts and the load-balancing loss to the diagnostics, without padding.

    probabilities: (K, N, E). chosen: (K, N, k), numbers among the K E experts of all runs.

    Source: Fedus et al. 2021, arXiv:2101.03961, equation 4, over all k assignments of a token.
    """
    if not ({"expert_load", "balance"} & ctx.diagnostics.keys()):
        return
    (K, _, E), top_k = probabilities.shape, config.top_k
    real = torch.ones_like(probabilities[..., 0]) if ctx.valid is None else ctx.valid.to(probabilities)  # (K, N)
    n_tokens = real.sum(1, keepdim=True)  # (K, 1)
    counts = _count(chosen, real[..., None].expand_as(chosen), K * E).view(K, E)
    load = counts / (n_tokens * top_k)  # (K, E)
    if "expert_load" in ctx.diagnostics:
        ctx.diagnostics["expert_load"].append(load)
    if "balance" in ctx.diagnostics and "balance" in ctx.active:
        mean = (probabilities * real[..., None]).sum(1) / n_tokens  # (K, E)
        uneven = E * (load * mean).sum(1)  # (K,)
        ctx.diagnostics["balance"].append(ctx.numbers["balance"] * uneven)

"""A mixture of experts instead of the MLP: k experts compute each token (Shazeer et al. 2017, arXiv:1701.06538).

Shapes: B sequences, T tokens, N = B T, C residual width, E experts, k experts per token, M = N k assignments, K runs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.nn.architecture import MoE
from model.nn.context import ForwardContext
from model.nn.dropout import random_normal
from model.nn.mlp import activate

ROUTERS = 131_072  # first site of router noise, one site per layer; all other sites are below


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply each row by the matrix of its group, (M, out).

    x: (M, in), sorted by group. weight: (groups, out, in). counts: number of rows in each group, (groups,).
    """
    rows = x.split(counts.tolist())
    return torch.cat([F.linear(group, w) for group, w in zip(rows, weight.unbind(0), strict=True)])


class GroupedLinear(torch.autograd.Function):
    """`grouped_linear` with a vmap rule that concatenates the groups of all runs."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        return grouped_linear(x, weight, counts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        raise AssertionError("outside vmap, grouped_linear() is called directly")

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        assert None not in dims
        x, weight, counts = (t.movedim(d or 0, 0).flatten(0, 1) for t, d in zip(tensors, dims, strict=True))
        return grouped_linear(x, weight, counts).unflatten(0, (info.batch_size, -1)), 0


class Experts(nn.Module):
    """A router and E MLPs. Each expert computes only the tokens that the router assigns to it.

    Experts have no capacity limit, so no token is dropped.
    """

    def __init__(self, config: MoE, layer: int) -> None:
        super().__init__()
        C, hidden, E = config.n_embd, config.hidden(), config.n_expert
        self.kind, self.n_expert, self.top_k = config.mlp, E, config.top_k
        self.site, self.noise_site = 4 * layer, ROUTERS + layer
        self.router = nn.Linear(C, E, bias=False)
        self.fc = nn.Parameter(torch.empty(E, hidden, C))
        self.gate = nn.Parameter(torch.empty(E, hidden, C)) if config.mlp == "swiglu" else None
        self.proj = nn.Parameter(torch.empty(E, C, hidden))

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        rows = x.flatten(0, 1)  # (N, C)
        weights, chosen, counts = self.route(rows, ctx)
        order = chosen.flatten().argsort(stable=True)  # (M,): the assignments, sorted by expert
        inputs = rows[order // self.top_k]  # (M, C)
        gate = None if self.gate is None else self.linear(inputs, self.gate, counts)
        h = activate(self.kind, self.linear(inputs, self.fc, counts), gate)  # (M, hidden)
        y = self.linear(ctx.drop(h, "mlp_dropout", self.site + 3), self.proj, counts)
        y = y[order.argsort()].unflatten(0, (-1, self.top_k))  # (N, k, C)
        y = (y * weights[..., None]).sum(1).view(x.shape)
        return ctx.drop(y, "residual_dropout", self.site + 4)

    def linear(self, x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """Apply `grouped_linear`, inside or outside vmap."""
        if torch._C._functorch.is_batchedtensor(x):
            return GroupedLinear.apply(x, weight, counts)  # type: ignore[no-untyped-call]
        return grouped_linear(x, weight, counts)

    def route(self, rows: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of the experts of each token, (N, k), these experts, (N, k), and tokens per expert, (E,).

        rows: (N, C).
        """
        with torch.autocast(rows.device.type, enabled=False):  # half precision would produce ties
            logits = F.linear(rows.float(), self.router.weight)  # (N, E)
        if "router_noise" in ctx.active:
            noise = random_normal(logits.numel(), ctx.key, self.noise_site).view(logits.shape)
            logits = logits + ctx.numbers["router_noise"] * noise
        best, chosen = logits.topk(self.top_k)
        probabilities = logits.softmax(-1)
        # A softmax over one logit is constant and gives the router no gradient (Fedus et al. 2021, arXiv:2101.03961).
        weights = best.softmax(-1) if self.top_k > 1 else probabilities.gather(-1, chosen)
        flat = chosen.flatten()
        counts = flat.new_zeros(self.n_expert).scatter_add(0, flat, torch.ones_like(flat))
        self.measure(probabilities, chosen, ctx)
        return weights, chosen, counts

    def measure(self, probabilities: Tensor, chosen: Tensor, ctx: ForwardContext) -> None:
        """Append the load of the experts and the load-balancing loss to the diagnostics, without padding.

        Source: Fedus et al. 2021, arXiv:2101.03961, equation 4, over all k assignments of a token.
        """
        if not ({"expert_load", "balance"} & ctx.diagnostics.keys()):
            return
        real = torch.ones_like(probabilities[:, 0]) if ctx.valid is None else ctx.valid.flatten().to(probabilities)
        n_tokens = real.sum()
        assigned = real[:, None].expand_as(chosen).flatten()  # (M,)
        counts = assigned.new_zeros(self.n_expert).scatter_add(0, chosen.flatten(), assigned)  # (E,)
        load = counts / (n_tokens * self.top_k)  # (E,)
        if "expert_load" in ctx.diagnostics:
            ctx.diagnostics["expert_load"].append(load)
        if "balance" in ctx.diagnostics and "balance" in ctx.active:
            mean = (probabilities * real[:, None]).sum(0) / n_tokens  # (E,)
            uneven = self.n_expert * (load * mean).sum()
            ctx.diagnostics["balance"].append(ctx.numbers["balance"] * uneven)

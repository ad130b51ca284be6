"""A mixture of experts in place of the mlp: each token goes to a few of them (Shazeer et al. 2017, arXiv:1701.06538).

Shapes: B sequences, T tokens, N = B T, C residual width, E experts, k of them for a token, M = N k assignments, K runs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.nn.architecture import MoE
from model.nn.context import ForwardContext
from model.nn.dropout import normal
from model.nn.mlp import activated

ROUTERS = 131_072  # first site of router noise, one for each layer; those of other random numbers are below


def each(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply each row by the matrix of its group, (M, out).

    x: (M, in), group after group. weight: (groups, out, in). counts: rows of each group.
    """
    parts = x.split(counts.tolist())
    return torch.cat([F.linear(part, w) for part, w in zip(parts, weight.unbind(0), strict=True)])


class Grouped(torch.autograd.Function):
    """`each` for vmap, to which the groups of all runs are one longer list."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        return each(x, weight, counts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        raise AssertionError("outside of vmap, each() is called directly")

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *given: Tensor) -> tuple[Tensor, int]:
        assert None not in dims
        x, weight, counts = (t.movedim(d or 0, 0).flatten(0, 1) for t, d in zip(given, dims, strict=True))
        return each(x, weight, counts).unflatten(0, (info.batch_size, -1)), 0


class Experts(nn.Module):
    """A router and E mlps, of which each computes its own tokens and no others.

    No expert has a limit: no token is left out.
    """

    def __init__(self, shape: MoE, layer: int) -> None:
        super().__init__()
        C, hidden, E = shape.n_embd, shape.hidden(), shape.n_expert
        self.kind, self.n_expert, self.top_k = shape.mlp, E, shape.top_k
        self.site, self.noise_site = 4 * layer, ROUTERS + layer
        self.router = nn.Linear(C, E, bias=False)
        self.fc = nn.Parameter(torch.empty(E, hidden, C))
        self.gate = nn.Parameter(torch.empty(E, hidden, C)) if shape.mlp == "swiglu" else None
        self.proj = nn.Parameter(torch.empty(E, C, hidden))

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        rows = x.flatten(0, 1)  # (N, C)
        weights, chosen, counts = self.route(rows, ctx)
        order = chosen.flatten().argsort(stable=True)  # (M,): the assignments, expert after expert
        inputs = rows[order // self.top_k]  # (M, C)
        gate = None if self.gate is None else self.times(inputs, self.gate, counts)
        h = activated(self.kind, self.times(inputs, self.fc, counts), gate)  # (M, hidden)
        y = self.times(ctx.drop(h, "mlp_dropout", self.site + 3), self.proj, counts)
        y = y[order.argsort()].unflatten(0, (-1, self.top_k))  # (N, k, C)
        y = (y * weights[..., None]).sum(1).view(x.shape)
        return ctx.drop(y, "residual_dropout", self.site + 4)

    def times(self, x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        if torch._C._functorch.is_batchedtensor(x):
            return Grouped.apply(x, weight, counts)  # type: ignore[no-untyped-call]
        return each(x, weight, counts)

    def route(self, rows: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return the experts of each token, (N, k), their weights, (N, k), and the tokens of each expert, (E,)."""
        with torch.autocast(rows.device.type, enabled=False):  # half precision would make ties
            logits = F.linear(rows.float(), self.router.weight)  # (N, E)
        if "router_noise" in ctx.active:
            noise = normal(logits.numel(), ctx.key, self.noise_site).view(logits.shape)
            logits = logits + ctx.numbers["router_noise"] * noise
        best, chosen = logits.topk(self.top_k)
        probabilities = logits.softmax(-1)
        # A softmax over one logit would give the router no gradient (Fedus et al. 2021, arXiv:2101.03961).
        weights = best.softmax(-1) if self.top_k > 1 else probabilities.gather(-1, chosen)
        flat = chosen.flatten()
        counts = flat.new_zeros(self.n_expert).scatter_add(0, flat, torch.ones_like(flat))
        self.note(probabilities, chosen, ctx)
        return weights, chosen, counts

    def note(self, probabilities: Tensor, chosen: Tensor, ctx: ForwardContext) -> None:
        """Note the load of the experts and its balance loss, padding left out.

        Source: Fedus et al. 2021, arXiv:2101.03961, equation 4, over all k assignments of a token.
        """
        if not ({"expert_load", "balance"} & ctx.diagnostics.keys()):
            return
        real = torch.ones_like(probabilities[:, 0]) if ctx.valid is None else ctx.valid.flatten().to(probabilities)
        of = real.sum()  # tokens
        taken = real[:, None].expand_as(chosen).flatten()  # (M,)
        load = taken.new_zeros(self.n_expert).scatter_add(0, chosen.flatten(), taken) / (of * self.top_k)  # (E,)
        if "expert_load" in ctx.diagnostics:
            ctx.diagnostics["expert_load"].append(load)
        if "balance" in ctx.diagnostics and "balance" in ctx.active:
            mean = (probabilities * real[:, None]).sum(0) / of  # (E,)
            uneven = self.n_expert * (load * mean).sum()
            ctx.diagnostics["balance"].append(ctx.numbers["balance"] * uneven)

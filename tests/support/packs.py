"""Forward and backward passes of networks of equal shape: one at a time, and side by side as in a pack."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from model.nn.context import Diagnostics
from model.nn.gpt import Network


class PassResult(NamedTuple):
    """Results of one forward and backward pass."""

    logits: Tensor
    diagnostics: Diagnostics
    grads: dict[str, Tensor]


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturbed(network: Network, size: float = 0.3) -> Network:
    """Add noise to every parameter, so that biases are not zero."""
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.add_(random_tensor(*p.shape, seed=i) * size)
    return network


def single_pass(network: Network, tokens: Tensor, keys: Sequence[str] = ()) -> PassResult:
    """Run one network. tokens: (B, T). keys: diagnostics to measure."""
    diagnostics: Diagnostics = {key: [] for key in keys}
    logits = network(tokens, diagnostics)
    loss = (logits * random_tensor(*logits.shape)).sum() + sum(diagnostics.get("balance", []))
    named = dict(network.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()))
    return PassResult(logits.detach(), diagnostics, dict(zip(named, grads, strict=True)))


def packed_pass(networks: Sequence[Network], tokens: Tensor, keys: Sequence[str] = ()) -> list[PassResult]:
    """Run K networks side by side, with the code of the first one. tokens: (K, B, T), or (B, T) for all."""
    first, K = networks[0], len(networks)
    stacked = {
        name: torch.stack([n.get_parameter(name).detach() for n in networks]).requires_grad_()
        for name, _ in first.named_parameters()
    }
    buffers = {name: torch.stack([n.get_buffer(name) for n in networks]) for name in {"key", *first.active}}

    def run_of_pack(leaves: dict[str, Tensor], numbers: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Diagnostics]:
        diagnostics: Diagnostics = {key: [] for key in keys}
        return functional_call(first, {**leaves, **numbers}, (x, diagnostics), tie_weights=False), diagnostics

    logits, diagnostics = vmap(run_of_pack, in_dims=(0, 0, 0 if tokens.ndim == 3 else None))(stacked, buffers, tokens)
    probe = random_tensor(*logits.shape[1:]).expand(K, *logits.shape[1:])
    loss = (logits * probe).sum() + sum(b.sum() for b in diagnostics.get("balance", []))
    grads = dict(zip(stacked, torch.autograd.grad(loss, list(stacked.values())), strict=True))
    return [
        PassResult(
            logits[k].detach(),
            {key: [tensor[k] for tensor in tensors] for key, tensors in diagnostics.items()},
            {name: grad[k] for name, grad in grads.items()},
        )
        for k in range(K)
    ]


def assert_same(a: PassResult, b: PassResult, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.logits, b.logits, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.diagnostics, b.diagnostics, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.grads, b.grads, rtol=tolerance, atol=tolerance * 10)


def assert_nan_stays_with_its_run(networks: Sequence[Network], tokens: Tensor) -> None:
    """Assert that nan weights in the second of three runs change no bit of the other runs' logits and gradients."""
    before = packed_pass(networks, tokens)
    with torch.no_grad():
        networks[1].wte.weight.fill_(torch.nan)
    after = packed_pass(networks, tokens)
    assert after[1].logits.isnan().all()
    for k in (0, 2):
        assert torch.equal(before[k].logits, after[k].logits)
        assert all(torch.equal(before[k].grads[name], after[k].grads[name]) for name in before[k].grads)

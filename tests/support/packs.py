"""Networks of one shape, alone and side by side as a pack runs them, with all their gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from model.nn.gpt import Network


class Seen(NamedTuple):
    """What one forward and backward pass shows."""

    logits: Tensor
    notes: dict[str, list[Tensor]]
    grads: dict[str, Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(network: Network, size: float = 0.3) -> Network:
    """Give every parameter, zero biases too, some value."""
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.add_(random(*p.shape, seed=i) * size)
    return network


def alone(network: Network, tokens: Tensor, keys: Sequence[str] = ()) -> Seen:
    """tokens: (B, T). keys: of the notes."""
    notes: dict[str, list[Tensor]] = {key: [] for key in keys}
    logits = network(tokens, notes)
    loss = (logits * random(*logits.shape)).sum() + sum(notes.get("balance", []))
    named = dict(network.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()))
    return Seen(logits.detach(), notes, dict(zip(named, grads, strict=True)))


def together(networks: Sequence[Network], tokens: Tensor, keys: Sequence[str] = ()) -> list[Seen]:
    """Run the first network's code with the weights and numbers of each. tokens: (K, B, T), or (B, T) for all."""
    first, K = networks[0], len(networks)
    stacked = {
        name: torch.stack([n.get_parameter(name).detach() for n in networks]).requires_grad_()
        for name, _ in first.named_parameters()
    }
    buffers = {name: torch.stack([n.get_buffer(name) for n in networks]) for name in {"key", *first.active}}

    def one(leaves: dict[str, Tensor], numbers: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        notes: dict[str, list[Tensor]] = {key: [] for key in keys}
        return functional_call(first, {**leaves, **numbers}, (x, notes), tie_weights=False), notes

    logits, notes = vmap(one, in_dims=(0, 0, 0 if tokens.ndim == 3 else None))(stacked, buffers, tokens)
    probe = random(*logits.shape[1:]).expand(K, *logits.shape[1:])
    loss = (logits * probe).sum() + sum(b.sum() for b in notes.get("balance", []))
    grads = dict(zip(stacked, torch.autograd.grad(loss, list(stacked.values())), strict=True))
    return [
        Seen(
            logits[k].detach(),
            {key: [note[k] for note in found] for key, found in notes.items()},
            {name: grad[k] for name, grad in grads.items()},
        )
        for k in range(K)
    ]


def assert_same(a: Seen, b: Seen, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.logits, b.logits, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.notes, b.notes, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.grads, b.grads, rtol=tolerance, atol=tolerance * 10)


def assert_nan_stays_with_its_run(networks: Sequence[Network], tokens: Tensor) -> None:
    """Break the second of three runs; logits and gradients of its neighbours keep every bit."""
    calm = together(networks, tokens)
    with torch.no_grad():
        networks[1].wte.weight.fill_(torch.nan)
    stormy = together(networks, tokens)
    assert stormy[1].logits.isnan().all()
    for k in (0, 2):
        assert torch.equal(calm[k].logits, stormy[k].logits)
        assert all(torch.equal(calm[k].grads[name], stormy[k].grads[name]) for name in calm[k].grads)

"""Forward and backward passes of networks of equal shape: one at a time, and side by side as in a pack."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.nn.architecture import MoE, Transformer
from model.nn.attention import attention
from model.nn.context import Diagnostics, ForwardContext
from model.nn.gpt import Network
from model.nn.init import initial_weights
from model.nn.linear import linear, normalize
from model.nn.mlp import mlp
from model.nn.moe import experts
from model.nn.regularization import Regularization


class PassResult(NamedTuple):
    """Results of one forward and backward pass."""

    logits: Tensor
    diagnostics: Diagnostics
    grads: dict[str, Tensor]


class Part(nn.Module):
    """Parameters of one part of a network, without the run axis. Calling it applies the part to one run."""

    def __init__(self, owner: "OneRun", path: str) -> None:
        super().__init__()
        self.owner, self.path = [owner], path  # in a list, so that the owner is no submodule

    def __getitem__(self, layer: int) -> "Part":
        return self.get_submodule(str(layer))

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        owner, name = self.owner[0], self.path.rpartition(".")[2]
        w, config, rows = owner.weights(), owner.config, x.reshape(1, -1, x.shape[-1])
        if ctx is not None:
            ctx = ctx._replace(shape=(1, *x.shape[:-1]) if x.ndim == 3 else (1, 1, len(x)))
        layer = int(self.path.split(".")[1]) if self.path.startswith("blocks.") else 0
        if "norm" in name:
            y = normalize(rows, w, self.path, config)
        elif name == "attn":
            y = attention(rows, w, layer, config, ctx)
        elif name == "mlp":
            y = (experts if isinstance(config, MoE) else mlp)(rows, w, layer, config, ctx)
        elif name.isdigit():
            y = owner.network.block(w, rows, layer, ctx)
        else:
            y = linear(rows, w, self.path)
        return y.view(*x.shape[:-1], -1)


class OneRun(nn.Module):
    """A network with the weights and the numbers of one run, whose parts can be called one by one."""

    def __init__(self, config: Transformer, vocab_size: int, seed: int) -> None:
        super().__init__()
        self.network, self.config = Network(config, vocab_size), config
        self.head: Part | None = None
        for name, weight in initial_weights(config, vocab_size, seed).items():
            *path, leaf = name.split(".")
            part: nn.Module = self
            for i, step in enumerate(path):
                if getattr(part, step, None) is None:
                    setattr(part, step, Part(self, ".".join(path[: i + 1])))
                part = getattr(part, step)
            part.register_parameter(leaf, nn.Parameter(weight))
        if not hasattr(self, "norm"):  # a norm without parameters
            self.norm = Part(self, "norm")
        self.active = frozenset[str]()  # names of the numbers that act in training
        for name in (*Regularization().numbers(), *config.numbers()):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("key", torch.zeros((), dtype=torch.int32))
        self.cos, self.sin = self.network.cos, self.network.sin

    def weights(self) -> dict[str, Tensor]:
        return {name: self.get_parameter(name)[None] for name in self.network.shapes}

    def numbers(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(name)[None] for name in self.active} if self.training else {}

    def forward(self, tokens: Tensor, diagnostics: Diagnostics | None = None) -> Tensor:
        """Return the logits, (B, T, V). tokens: (B, T). Diagnostics have no run axis."""
        found: Diagnostics = {key: [] for key in diagnostics or {}}
        logits = self.network(self.weights(), tokens[None], self.numbers(), self.key[None], found)
        for key, tensors in found.items():
            diagnostics[key] += [tensor.squeeze(0) for tensor in tensors]
        return logits.view(*tokens.shape, -1)

    def context(self, T: int, diagnostics: Diagnostics | None = None) -> ForwardContext:
        """Return the context of a pass over T tokens."""
        tokens = torch.ones(1, 1, T, dtype=torch.int64)
        return self.network.context(tokens, self.numbers(), self.key[None], diagnostics)

    def embed(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        return self.network.embed(self.weights(), x[None], ctx._replace(shape=(1, *x.shape))).view(*x.shape, -1)

    def run(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        ctx = ctx._replace(shape=(1, *x.shape[:2]))
        return self.network.run(self.weights(), x.reshape(1, -1, x.shape[-1]), ctx).view(x.shape)


def build_network(config: Transformer, vocab_size: int, seed: int) -> OneRun:
    """Return a network of one run with its initial weights."""
    return OneRun(config, vocab_size, seed)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturbed(network: OneRun, size: float = 0.3) -> OneRun:
    """Add noise to every parameter, so that biases are not zero."""
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.add_(random_tensor(*p.shape, seed=i) * size)
    return network


def single_pass(network: OneRun, tokens: Tensor, keys: Sequence[str] = ()) -> PassResult:
    """Run one network. tokens: (B, T). keys: diagnostics to measure."""
    diagnostics: Diagnostics = {key: [] for key in keys}
    logits = network(tokens, diagnostics)
    loss = (logits * random_tensor(*logits.shape)).sum() + sum(diagnostics.get("balance", []))
    named = dict(network.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()))
    return PassResult(logits.detach(), diagnostics, dict(zip(named, grads, strict=True)))


def stacked(networks: Sequence[Any], tensors: str) -> dict[str, Tensor]:
    """Return the weights or the numbers of K runs of equal shape, with the run axis in front."""
    rows = [getattr(network, tensors)() for network in networks]
    return {name: torch.cat([row[name].detach() for row in rows]) for name in rows[0]}


def packed_pass(networks: Sequence[OneRun], tokens: Tensor, keys: Sequence[str] = ()) -> list[PassResult]:
    """Run K networks side by side, with the code of the first one. tokens: (K, B, T), or (B, T) for all."""
    K = len(networks)
    weights = {name: weight.requires_grad_() for name, weight in stacked(networks, "weights").items()}
    key, diagnostics = torch.stack([n.key for n in networks]), {key: [] for key in keys}
    x = tokens.expand(K, *tokens.shape[-2:])
    logits = networks[0].network(weights, x, stacked(networks, "numbers"), key, diagnostics).view(*x.shape, -1)
    probe = random_tensor(*logits.shape[1:]).expand(K, *logits.shape[1:])
    loss = (logits * probe).sum() + sum(b.sum() for b in diagnostics.get("balance", []))
    grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
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


def assert_nan_stays_with_its_run(networks: Sequence[OneRun], tokens: Tensor) -> None:
    """Assert that nan weights in the second of three runs change no bit of the other runs' logits and gradients."""
    before = packed_pass(networks, tokens)
    with torch.no_grad():
        networks[1].wte.weight.fill_(torch.nan)
    after = packed_pass(networks, tokens)
    assert after[1].logits.isnan().all()
    for k in (0, 2):
        assert torch.equal(before[k].logits, after[k].logits)
        assert all(torch.equal(before[k].grads[name], after[k].grads[name]) for name in before[k].grads)

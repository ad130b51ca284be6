"""K networks of one shape, side by side: their losses, their gradients, their scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional as F

from model.config import TrainConfig
from model.nn.context import Diagnostics
from model.nn.gpt import Network, build_network
from model.train.params import PackParams

Named = Mapping[str, Tensor]
Measure = Callable[[Tensor, Tensor, Diagnostics], tuple[Tensor, ...]]


class Pack:
    """K networks of one shape; their weights are rows of one block."""

    def __init__(self, config: TrainConfig, vocab_size: int, size: int, device: torch.device) -> None:
        self.config, self.vocab_size, self.size, self.device = config, vocab_size, size, device
        self.network: Network = build_network(config.model, vocab_size, config.run.seed).to(device)
        self.network.padded = config.data.layout == "documents"
        self.network.explicit = config.run.attention == "explicit"
        shapes = {name: p.shape for name, p in self.network.named_parameters()}
        self.weights = PackParams(config, shapes, size, device)
        self.leaves = {name: self._leaf(name) for name in self.weights.shapes}
        self.numbers: list[dict[str, float]] = [{} for _ in range(size)]  # that act inside the network
        self.scales = [1.0] * size  # of the fp16 loss
        self.clean = [0] * size  # updates since a gradient last overflowed
        wrap = torch.compile if config.run.compile == "on" else _no_compile
        self.losses = wrap(self._each(training_losses, shared=False))
        self.score = wrap(self._each(evaluation_scores, shared=True))

    def _leaf(self, name: str) -> Tensor:
        """Make one parameter a window on the common block: (K, ...), or the module's own where K = 1."""
        a, b = self.weights.spans[name]
        shape = (self.size, *self.weights.shapes[name])
        if self.size == 1:
            own = self.network.get_parameter(name)
            own.data = self.weights.p[0, a:b].view(shape[1:])
            return own
        return self.weights.p[:, a:b].view(shape).requires_grad_()

    def fill(self, lane: int, config: TrainConfig) -> None:
        """Put a new run in a lane: initial weights, empty optimizer state, its numbers."""
        self.weights.fill(lane, build_network(config.model, self.vocab_size, config.run.seed).state_dict())
        self.numbers[lane] = {**config.regularization.numbers(), **config.model.numbers()}
        self.scales[lane] = 2.0**16 if config.run.precision == "fp16" else 1.0
        self.clean[lane] = 0

    def train_on(
        self, x: Tensor, y: Tensor, keys: Sequence[int], shares: Sequence[float], balances: Sequence[float]
    ) -> Tensor:
        """Add the gradients of one micro-step; return the summed nats of each run, (K,).

        x, y: (K, B, T), y = -1 where nothing is scored. keys: of the random numbers in the network. shares: weight of
        a token's loss. balances: weight of the load-balancing loss.
        """
        if not self.network.training:  # to ask every module costs as much as a small layer
            self.network.train()
        self.network.active = frozenset(
            name for numbers in self.numbers for name, value in numbers.items() if value > 0
        )
        with self.autocast():
            sums, *balance = self.losses(self._buffers(keys), x, y)  # (K,) each
        loss = (sums * self._scaled(shares)).sum()
        for lost in balance:  # one for each layer that has any
            loss = loss + (lost * self._scaled(balances)).sum()
        grads = torch.autograd.grad(loss, list(self.leaves.values()))
        self.weights.g += torch.cat([grad.reshape(self.size, -1) for grad in grads], dim=1)
        return sums.detach()

    def _scaled(self, weights: Sequence[float]) -> Tensor:
        """Return weights of losses times the scale of each run, (K,)."""
        scaled = [weight * scale for weight, scale in zip(weights, self.scales, strict=True)]
        return torch.tensor(scaled, device=self.device)

    def _buffers(self, keys: Sequence[int]) -> dict[str, Tensor]:
        """Return the 0-D buffers of the network for each run, (K,), none where no number is above 0."""
        if not self.network.active:
            return {}
        buffers = {"key": torch.tensor(keys, dtype=torch.int32, device=self.device)}
        for name in self.network.active:
            values = [numbers.get(name, 0.0) for numbers in self.numbers]
            buffers[name] = torch.tensor(values, device=self.device)
        return buffers

    @torch.no_grad()
    def unscale(self, lanes: Sequence[int]) -> list[int]:
        """Take the fp16 loss scale out of the gradients; return the lanes whose gradients are finite.

        A gradient that overflowed is thrown away and its run's scale halved; 2,000 clean updates double it, as
        torch.amp.GradScaler does.
        """
        good = []
        for lane in lanes:
            grad = self.weights.g[lane].div_(self.scales[lane])
            if bool(grad.isfinite().all()):
                good.append(lane)
                self.clean[lane] += 1
                if self.clean[lane] % 2000 == 0:
                    self.scales[lane] *= 2
            else:
                grad.zero_()
                self.clean[lane] = 0
                self.scales[lane] = max(1.0, self.scales[lane] / 2)
        return good

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return summed nats and the number of targets predicted right, (K,) each. x, y: (B, T), for all runs."""
        self.network.eval()
        with self.autocast():
            nats, hits = self.score({}, x, y)
        return nats, hits

    @torch.no_grad()
    def diagnostics(self, lane: int, x: Tensor) -> Diagnostics:
        """Measure the diagnostics of one run. x: (B, T)."""
        self.network.eval()
        diagnostics: Diagnostics = {"attention_entropy": [], "expert_load": [], "kurtosis": []}
        own = self.leaves if self.size == 1 else {name: leaf[lane] for name, leaf in self.leaves.items()}
        with self.autocast():
            functional_call(self.network, own, (x, diagnostics), tie_weights=False)
        return diagnostics

    def autocast(self) -> torch.autocast:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.run.precision)
        return torch.autocast(self.device.type, dtype=half or torch.bfloat16, enabled=half is not None)

    def _each(self, measure: Measure, shared: bool) -> Callable[..., Any]:
        """Return measure(logits, y, diagnostics) for each run, stacked. shared: x and y are the same for all runs."""

        def one(leaves: Named, buffers: Named, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            diagnostics: Diagnostics = {"balance": []}
            held = {**leaves, **buffers}
            return measure(functional_call(self.network, held, (x, diagnostics), tie_weights=False), y, diagnostics)

        def alone(buffers: Named, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            for name, b in buffers.items():
                self.network.get_buffer(name).copy_(b[0])
            diagnostics: Diagnostics = {"balance": []}
            x, y = (x, y) if shared else (x[0], y[0])
            return tuple(found[None] for found in measure(self.network(x, diagnostics), y, diagnostics))

        def side_by_side(buffers: Named, x: Tensor, y: Tensor) -> Any:
            batch = None if shared else 0
            return vmap(one, in_dims=(0, 0, batch, batch))(self.leaves, buffers, x, y)

        # K = 1 goes without vmap and functional_call, which at small sizes cost up to half the speed.
        return alone if self.size == 1 else side_by_side


def summed_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats. logits: (B, T, V); y: (B, T), -1 where nothing is scored."""
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")


def training_losses(logits: Tensor, y: Tensor, diagnostics: Diagnostics) -> tuple[Tensor, ...]:
    """Return the summed cross-entropy and the balance loss of each layer that has one."""
    return summed_cross_entropy(logits, y), *diagnostics["balance"]


def evaluation_scores(logits: Tensor, y: Tensor, diagnostics: Diagnostics) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy and the number of targets predicted right."""
    return summed_cross_entropy(logits, y), (logits.argmax(-1) == y).sum()


def _no_compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return function

"""K runs of equal shape, trained side by side: their losses, gradients and validation scores.

Shapes: K runs, B sequences, T tokens, N = B T, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import TrainConfig
from model.nn.architecture import MoE
from model.nn.context import Diagnostics, Weights
from model.nn.gpt import Network
from model.nn.init import initial_weights
from model.train.params import PackParams


class Pack:
    """K runs of equal shape whose weights are the rows of one tensor. A lane is a run's position in the pack."""

    def __init__(self, config: TrainConfig, vocab_size: int, size: int, device: torch.device) -> None:
        self.config, self.vocab_size, self.size, self.device = config, vocab_size, size, device
        padded, explicit = config.data.layout == "documents", config.run.attention == "explicit"
        self.network = Network(config.model, vocab_size, device, padded, explicit)
        self.params = PackParams(config, self.network.shapes, size, device)
        self.leaves = {name: self._leaf(name) for name in self.params.shapes}
        # Hyperparameters that act inside the network, such as dropout probabilities, by lane.
        self.numbers: list[dict[str, float]] = [{} for _ in range(size)]
        self.active: dict[str, Tensor] = {}  # those that are above 0 in any run, (K,) each
        self.loss_scales = [1.0] * size  # factors on the fp16 loss, at the last rung
        self.scales = torch.ones(size, device=device)  # the same now, (K,)
        self.clean_updates = [0] * size  # since a gradient last overflowed
        compile_or_not = torch.compile if config.run.compile == "on" else _no_compile
        passes = ForwardPasses(self.network)
        self.losses = compile_or_not(passes.losses)
        self.scores = compile_or_not(passes.scores)

    def _leaf(self, name: str) -> Tensor:
        """Return one parameter of all runs as a view of the common tensor, (K, ...)."""
        a, b = self.params.spans[name]
        return self.params.weights[:, a:b].view(self.size, *self.params.shapes[name]).requires_grad_()

    def initialize(self, lane: int, config: TrainConfig) -> None:
        """Start a new run in a lane: initial weights, empty optimizer state, the hyperparameters of its network."""
        self.params.initialize(lane, initial_weights(config.model, self.vocab_size, config.run.seed))
        self.set_numbers(lane, config)
        self.loss_scales[lane] = 2.0**16 if config.run.precision == "fp16" else 1.0
        self.clean_updates[lane] = 0

    def set_numbers(self, lane: int, config: TrainConfig) -> None:
        """Set the hyperparameters that act inside the network of one run."""
        self.numbers[lane] = {**config.regularization.numbers(), **config.model.numbers()}
        names = {name for numbers in self.numbers for name, value in numbers.items() if value > 0}
        self.active = {
            name: torch.tensor([numbers.get(name, 0.0) for numbers in self.numbers], device=self.device)
            for name in sorted(names)
        }

    def accumulate_grads(
        self,
        x: Tensor,
        y: Tensor,
        keys: Tensor,
        token_weights: Tensor,
        balance_weights: Tensor,
    ) -> Tensor:
        """Add the gradients of one micro-step; return the summed nats of each run, (K,).

        x, y: inputs and targets, (K, B, T); y is -1 where a target is masked.
        keys: keys of the random numbers in the network, (K,) int32.
        token_weights: weights of one token's loss, (K,).
        balance_weights: weights of the load-balancing loss, (K,).
        """
        with self.autocast():
            sums, *balance_losses = self.losses(self.leaves, self.active, keys, x, y)  # (K,) each
        loss = (sums * self._scaled(token_weights)).sum()
        for balance_loss in balance_losses:  # one for each layer with experts
            loss = loss + (balance_loss * self._scaled(balance_weights)).sum()
        grads = torch.autograd.grad(loss, list(self.leaves.values()))
        self.params.grads += torch.cat([grad.reshape(self.size, -1) for grad in grads], dim=1)
        return sums.detach()

    def _scaled(self, weights: Tensor) -> Tensor:
        """Return the weights of losses times the loss scale of each run, (K,)."""
        if self.config.run.precision != "fp16":
            return weights
        return weights * self.scales

    @torch.no_grad()
    def unscale(self, index: Tensor) -> Tensor:
        """Divide gradients by the fp16 loss scale; return whether a gradient of the lane has overflowed, (L,).

        index: lanes that complete an update, (L,).
        """
        grads = self.params.grads[index] / self.scales[index, None]
        self.params.grads[index] = grads
        return ~grads.isfinite().all(dim=1)

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy in nats and the number of correct predictions, (K,) each.

        x, y: inputs and targets, (B, T), the same for all runs; y is -1 where a target is masked.
        """
        x, y = (t.expand(self.size, *t.shape) for t in (x, y))
        with self.autocast():
            return self.scores(self.leaves, x, y)

    @torch.no_grad()
    def diagnostics(self, lane: int, x: Tensor) -> Diagnostics:
        """Return attention entropy, expert load and kurtosis of one run, one tensor per layer. x: (B, T)."""
        diagnostics: Diagnostics = {"attention_entropy": [], "expert_load": [], "kurtosis": []}
        own = {name: leaf[lane : lane + 1] for name, leaf in self.leaves.items()}
        with self.autocast():
            self.network(own, x[None], diagnostics=diagnostics)
        return {name: [tensor.squeeze(0) for tensor in tensors] for name, tensors in diagnostics.items()}

    @torch.no_grad()
    def activation_sizes(self, x: Tensor) -> list[Tensor]:
        """Return mean absolute values of activations in the order of the forward pass, (K,) each. x: (B, T)."""
        diagnostics: Diagnostics = {"size": []}
        with self.autocast():
            self.network(self.leaves, x.expand(self.size, *x.shape), diagnostics=diagnostics)
        return diagnostics["size"]

    def autocast(self) -> torch.autocast:
        """Return the context of mixed precision for run.precision."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.run.precision)
        return torch.autocast(self.device.type, dtype=half or torch.bfloat16, enabled=half is not None)


class ForwardPasses:
    """The functions that torch.compile compiles.

    They refer to the network, not to the pack: a cycle of references would keep the memory of a finished pack until
    Python's garbage collector runs, which does not know how full a GPU is.
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    def losses(
        self, w: Weights, numbers: Mapping[str, Tensor], key: Tensor | None, x: Tensor, y: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the summed cross-entropy and the load-balancing loss of each layer that has experts, (K,) each."""
        diagnostics: Diagnostics = {"balance": []} if isinstance(self.network.config, MoE) else {}
        logits = self.network(w, x, numbers, key, diagnostics)
        return summed_cross_entropy(logits, y), *diagnostics.get("balance", [])

    def scores(self, w: Weights, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy and the number of correct predictions, (K,) each."""
        logits = self.network(w, x)
        return summed_cross_entropy(logits, y), (logits.argmax(-1) == y.flatten(1)).sum(1)


def summed_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the summed cross-entropy of each run in nats, (K,).

    logits: (K, N, V). y: (K, B, T), -1 where a target is masked.
    """
    rows, targets = logits.float().flatten(0, 1), y.flatten()
    if len(logits) == 1:
        return F.cross_entropy(rows, targets, ignore_index=-1, reduction="sum")[None]
    return F.cross_entropy(rows, targets, ignore_index=-1, reduction="none").view(len(logits), -1).sum(1)


def _no_compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return function

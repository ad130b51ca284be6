"""K runs of equal shape, trained side by side: their losses, gradients and validation scores.

Shapes: K runs, B sequences, T tokens.
"""

import torch
from torch import Tensor

from model.config import TrainConfig
from model.nn.context import Diagnostics
from model.nn.init import initial_weights
from model.train.device import set_tf32
from model.train.graphs import PackGraphs, build_network
from model.train.params import PackParams
from model.train.passes import Passes


class Pack:
    """K runs of equal shape whose weights are the rows of one tensor. A lane is a run's position in the pack."""

    def __init__(self, config: TrainConfig, vocab_size: int, size: int, device: torch.device) -> None:
        self.config, self.vocab_size, self.size, self.device = config, vocab_size, size, device
        set_tf32(config)
        self.network = build_network(config, vocab_size, device)
        self.passes = Passes(self.network, config.run.precision)
        self.params = PackParams(config, self.network.shapes, size, device)
        self.leaves = {name: self._leaf(name) for name in self.params.shapes}
        # Hyperparameters that act inside the network, such as dropout probabilities, by lane.
        self.numbers: list[dict[str, float]] = [{} for _ in range(size)]
        # Those that are above 0 in any run or in the compiled graph anyway, (K,) each.
        self.active: dict[str, Tensor] = {}
        self.loss_scales = [1.0] * size  # factors on the fp16 loss, at the last rung
        self.scales = torch.ones(size, device=device)  # the same now, (K,)
        self.clean_updates = [0] * size  # since a gradient last overflowed
        self.graphs = PackGraphs(config, vocab_size, self.params) if config.run.compile == "on" else None

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
        names |= set(self.config.run.graph_numbers)
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
        batch = keys, x, y, self._scaled(token_weights), self._scaled(balance_weights)
        if self.graphs is not None:
            return self.graphs.accumulate(self.active, *batch)
        sums, grads = self.passes.grads(self.leaves, self.active, *batch)
        self.params.grads += grads
        return sums

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
        if self.graphs is not None:
            return self.graphs.scores(x, y)
        x, y = (t.expand(self.size, *t.shape) for t in (x, y))
        return self.passes.scores(self.leaves, x, y)

    @torch.no_grad()
    def diagnostics(self, lane: int, x: Tensor) -> Diagnostics:
        """Return attention entropy, expert load and kurtosis of one run, one tensor per layer. x: (B, T)."""
        diagnostics: Diagnostics = {"attention_entropy": [], "expert_load": [], "kurtosis": []}
        own = {name: leaf[lane : lane + 1] for name, leaf in self.leaves.items()}
        with self.passes.autocast():
            self.network(own, x[None], diagnostics=diagnostics)
        return {name: [tensor.squeeze(0) for tensor in tensors] for name, tensors in diagnostics.items()}

    @torch.no_grad()
    def activation_sizes(self, x: Tensor) -> list[Tensor]:
        """Return mean absolute values of activations in the order of the forward pass, (K,) each. x: (B, T)."""
        diagnostics: Diagnostics = {"size": []}
        with self.passes.autocast():
            self.network(self.leaves, x.expand(self.size, *x.shape), diagnostics=diagnostics)
        return diagnostics["size"]

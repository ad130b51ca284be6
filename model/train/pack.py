"""K networks of equal shape, trained side by side: their losses, gradients and validation scores.

Shapes: K runs, B sequences, T tokens, V vocabulary.
"""

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
    """K networks of equal shape whose weights are the rows of one tensor. A lane is a run's position in the pack."""

    def __init__(self, config: TrainConfig, vocab_size: int, size: int, device: torch.device) -> None:
        self.config, self.vocab_size, self.size, self.device = config, vocab_size, size, device
        self.network: Network = build_network(config.model, vocab_size, config.run.seed).to(device)
        self.network.padded = config.data.layout == "documents"
        self.network.explicit = config.run.attention == "explicit"
        shapes = {name: p.shape for name, p in self.network.named_parameters()}
        self.params = PackParams(config, shapes, size, device)
        self.leaves = {name: self._leaf(name) for name in self.params.shapes}
        # Hyperparameters that act inside the network, such as dropout probabilities, by lane.
        self.numbers: list[dict[str, float]] = [{} for _ in range(size)]
        self.loss_scales = [1.0] * size  # factors on the fp16 loss
        self.clean_updates = [0] * size  # since a gradient last overflowed
        compile_or_not = torch.compile if config.run.compile == "on" else _no_compile
        self.losses = compile_or_not(self._for_each_run(training_losses, shared=False))
        self.scores = compile_or_not(self._for_each_run(evaluation_scores, shared=True))

    def _leaf(self, name: str) -> Tensor:
        """Return one parameter as a view of the common tensor, (K, ...); the module's own parameter where K = 1."""
        a, b = self.params.spans[name]
        shape = (self.size, *self.params.shapes[name])
        if self.size == 1:
            own = self.network.get_parameter(name)
            own.data = self.params.weights[0, a:b].view(shape[1:])
            return own
        return self.params.weights[:, a:b].view(shape).requires_grad_()

    def initialize(self, lane: int, config: TrainConfig) -> None:
        """Start a new run in a lane: initial weights, empty optimizer state, the hyperparameters of its network."""
        self.params.initialize(lane, build_network(config.model, self.vocab_size, config.run.seed).state_dict())
        self.numbers[lane] = {**config.regularization.numbers(), **config.model.numbers()}
        self.loss_scales[lane] = 2.0**16 if config.run.precision == "fp16" else 1.0
        self.clean_updates[lane] = 0

    def accumulate_grads(
        self,
        x: Tensor,
        y: Tensor,
        keys: Sequence[int],
        token_weights: Sequence[float],
        balance_weights: Sequence[float],
    ) -> Tensor:
        """Add the gradients of one micro-step; return the summed nats of each run, (K,).

        x, y: inputs and targets, (K, B, T); y is -1 where a target is masked.
        keys: keys of the random numbers in the network, one per run.
        token_weights: weights of one token's loss.
        balance_weights: weights of the load-balancing loss.
        """
        if not self.network.training:  # train() visits every module, which costs as much as a small layer
            self.network.train()
        self.network.active = frozenset(
            name for numbers in self.numbers for name, value in numbers.items() if value > 0
        )
        with self.autocast():
            sums, *balance_losses = self.losses(self._buffers(keys), x, y)  # (K,) each
        loss = (sums * self._scaled(token_weights)).sum()
        for balance_loss in balance_losses:  # one for each layer with experts
            loss = loss + (balance_loss * self._scaled(balance_weights)).sum()
        grads = torch.autograd.grad(loss, list(self.leaves.values()))
        self.params.grads += torch.cat([grad.reshape(self.size, -1) for grad in grads], dim=1)
        return sums.detach()

    def _scaled(self, weights: Sequence[float]) -> Tensor:
        """Return the weights of losses times the loss scale of each run, (K,)."""
        scaled = [weight * scale for weight, scale in zip(weights, self.loss_scales, strict=True)]
        return torch.tensor(scaled, device=self.device)

    def _buffers(self, keys: Sequence[int]) -> dict[str, Tensor]:
        """Return the buffers of the network with one number per run, (K,) each; empty if all numbers are 0."""
        if not self.network.active:
            return {}
        buffers = {"key": torch.tensor(keys, dtype=torch.int32, device=self.device)}
        for name in self.network.active:
            values = [numbers.get(name, 0.0) for numbers in self.numbers]
            buffers[name] = torch.tensor(values, device=self.device)
        return buffers

    @torch.no_grad()
    def unscale(self, lanes: Sequence[int]) -> list[int]:
        """Divide gradients by the fp16 loss scale; return the lanes whose gradients are finite.

        A gradient that overflowed is set to zero and the loss scale of its run is halved. The scale doubles after
        2,000 updates without an overflow, as in torch.amp.GradScaler.
        """
        finite = []
        for lane in lanes:
            grad = self.params.grads[lane].div_(self.loss_scales[lane])
            if bool(grad.isfinite().all()):
                finite.append(lane)
                self.clean_updates[lane] += 1
                if self.clean_updates[lane] % 2000 == 0:
                    self.loss_scales[lane] *= 2
            else:
                grad.zero_()
                self.clean_updates[lane] = 0
                self.loss_scales[lane] = max(1.0, self.loss_scales[lane] / 2)
        return finite

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy in nats and the number of correct predictions, (K,) each.

        x, y: inputs and targets, (B, T), the same for all runs; y is -1 where a target is masked.
        """
        self.network.eval()
        with self.autocast():
            nats, n_correct = self.scores({}, x, y)
        return nats, n_correct

    @torch.no_grad()
    def diagnostics(self, lane: int, x: Tensor) -> Diagnostics:
        """Return attention entropy, expert load and kurtosis of one run, one tensor per layer. x: (B, T)."""
        self.network.eval()
        diagnostics: Diagnostics = {"attention_entropy": [], "expert_load": [], "kurtosis": []}
        own = self.leaves if self.size == 1 else {name: leaf[lane] for name, leaf in self.leaves.items()}
        with self.autocast():
            functional_call(self.network, own, (x, diagnostics), tie_weights=False)
        return diagnostics

    def autocast(self) -> torch.autocast:
        """Return the context of mixed precision for run.precision."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.run.precision)
        return torch.autocast(self.device.type, dtype=half or torch.bfloat16, enabled=half is not None)

    def _for_each_run(self, measure: Measure, shared: bool) -> Callable[..., Any]:
        """Return a function of (buffers, x, y) that stacks measure(logits, y, diagnostics) of all runs.

        shared: whether x and y are the same for all runs, (B, T), or (K, B, T).
        """

        def run_of_pack(leaves: Named, buffers: Named, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            diagnostics: Diagnostics = {"balance": []}
            tensors = {**leaves, **buffers}
            logits = functional_call(self.network, tensors, (x, diagnostics), tie_weights=False)
            return measure(logits, y, diagnostics)

        def single_run(buffers: Named, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            for name, b in buffers.items():
                self.network.get_buffer(name).copy_(b[0])
            diagnostics: Diagnostics = {"balance": []}
            x, y = (x, y) if shared else (x[0], y[0])
            return tuple(result[None] for result in measure(self.network(x, diagnostics), y, diagnostics))

        def all_runs(buffers: Named, x: Tensor, y: Tensor) -> Any:
            batch = None if shared else 0
            return vmap(run_of_pack, in_dims=(0, 0, batch, batch))(self.leaves, buffers, x, y)

        # A single run uses neither vmap nor functional_call, which at small sizes cost up to half the speed.
        return single_run if self.size == 1 else all_runs


def summed_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats. logits: (B, T, V); y: (B, T), -1 where a target is masked."""
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")


def training_losses(logits: Tensor, y: Tensor, diagnostics: Diagnostics) -> tuple[Tensor, ...]:
    """Return the summed cross-entropy and the load-balancing loss of each layer that has experts."""
    return summed_cross_entropy(logits, y), *diagnostics["balance"]


def evaluation_scores(logits: Tensor, y: Tensor, diagnostics: Diagnostics) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy and the number of correct predictions."""
    return summed_cross_entropy(logits, y), (logits.argmax(-1) == y).sum()


def _no_compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return function

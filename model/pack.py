"""The weights of K runs of one shape, side by side in one block of memory.

All parameters of a run lie in one row: matrices first, then gains and biases. Elementwise optimizers and clipping
then act on two long tensors instead of dozens of short ones, which at small sizes is most of their cost.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional as F

from model.clip import clip
from model.config import TrainConfig
from model.network import Network
from model.regularization import SITES, Regularization

Coefficients = Mapping[str, float]
Named = Mapping[str, Tensor]
Measure = Callable[[Tensor, Tensor], Any]


class Pack:
    """K networks of one shape with their gradients and optimizer state."""

    def __init__(self, config: TrainConfig, vocab_size: int, size: int, device: torch.device) -> None:
        self.config, self.vocab_size, self.size, self.device = config, vocab_size, size, device
        self.network: Network = config.model.build(vocab_size, config.run.seed).to(device)
        named = dict(self.network.named_parameters())
        self.names = sorted(named, key=lambda name: named[name].ndim < 2)  # stable: matrices first
        ends = torch.tensor([named[name].numel() for name in self.names]).cumsum(0).tolist()
        self.spans = dict(zip(self.names, zip([0, *ends], ends, strict=False), strict=True))
        self.matrices = max((self.spans[n][1] for n in self.names if named[n].ndim >= 2), default=0)
        self.weights, self.grads = (torch.zeros(size, ends[-1], device=device) for _ in range(2))  # (K, P)
        self.state = {key: torch.zeros_like(self.weights) for key in config.optimizer.state()}
        self.shapes = {name: named[name].shape for name in self.names}
        self.leaves = {name: self._leaf(name) for name in self.names}  # (K, ...), or the module's own where K = 1
        self.dropouts = [Regularization() for _ in range(size)]
        self.scales = [2.0**16 if config.run.precision == "fp16" else 1.0] * size
        self.clean = [0] * size  # updates since a gradient last overflowed
        wrap = torch.compile if config.run.compile == "on" else _as_it_is
        self.nats = wrap(self._each(nats, shared=False))
        self.score = wrap(self._each(score, shared=True))

    def _leaf(self, name: str) -> Tensor:
        """Make one parameter a window on the common block."""
        a, b = self.spans[name]
        shape = (self.size, *self.shapes[name])
        if self.size == 1:
            own = self.network.get_parameter(name)
            own.data = self.weights[0, a:b].view(shape[1:])
            return own
        return self.weights[:, a:b].view(shape).requires_grad_()

    def fill(self, place: int, config: TrainConfig) -> None:
        """Put a new run in a place: initial weights, empty optimizer state, its dropout."""
        fresh = config.model.build(self.vocab_size, config.run.seed).state_dict()
        self.load(place, {f"weights.{name}": fresh[name] for name in self.names})
        self.dropouts[place] = config.regularization
        self.scales[place] = 2.0**16 if config.run.precision == "fp16" else 1.0
        self.clean[place] = 0

    def tensors(self, place: int) -> dict[str, Tensor]:
        """Return views of all that a place holds, by name: "weights.wte.weight", "m.wte.weight", ..."""
        held = {"weights": self.weights, **self.state}
        return {
            f"{kind}.{name}": block[place, a:b].view(self.shapes[name])
            for kind, block in held.items()
            for name, (a, b) in self.spans.items()
        }

    @torch.no_grad()
    def load(self, place: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into a place; what is not given becomes zero."""
        self.grads[place] = 0
        for name, held in self.tensors(place).items():
            held.copy_(tensors[name]) if name in tensors else held.zero_()

    def train_on(self, x: Tensor, y: Tensor, keys: Sequence[int], shares: Sequence[float]) -> Tensor:
        """Add the gradients of one micro-step; return the summed nats of each run, (K,).

        x, y: (K, B, T), y = -1 where nothing is scored. keys: of the dropout masks. shares: weight of a token's loss.
        """
        if not self.network.training:  # to ask every module costs as much as a small layer
            self.network.train()
        self.network.sites = frozenset(s for s in SITES if any(d.at(s) for d in self.dropouts))
        with self.autocast():
            sums = self.nats(self._buffers(keys), x, y)  # (K,)
        weights = [share * scale for share, scale in zip(shares, self.scales, strict=True)]
        loss = (sums * torch.tensor(weights, device=self.device)).sum()
        grads = torch.autograd.grad(loss, list(self.leaves.values()))
        self.grads += torch.cat([grad.reshape(self.size, -1) for grad in grads], dim=1)
        return sums.detach()

    def _buffers(self, keys: Sequence[int]) -> dict[str, Tensor]:
        """Return the 0-D buffers of the network for each run, (K,), none where nothing is dropped."""
        if not self.network.sites:
            return {}
        buffers = {"key": torch.tensor(keys, dtype=torch.int32, device=self.device)}
        for site in self.network.sites:
            p = [d.at(site) for d in self.dropouts]
            buffers[f"{site}_dropout"] = torch.tensor(p, device=self.device)
        return buffers

    @torch.no_grad()
    def update(self, places: Sequence[int], coefficients: Sequence[Coefficients], limits: Sequence[float]) -> Tensor:
        """Clip, take one optimizer step in some places, in ascending order, and clear their gradients.

        Returns norms before clipping and whether each was clipped, (2, n).
        """
        everyone = len(places) == self.size
        rows = slice(None) if everyone else torch.tensor(places, device=self.device)
        # A slice is a view and is updated in place; a list of places is a copy and is written back.
        p, g = self.weights[rows], self.grads[rows]
        state = {key: tensor[rows] for key, tensor in self.state.items()}
        norms, clipped = clip(g, torch.tensor(limits, device=self.device))
        self._step(p, g, state, coefficients)
        if not everyone:
            self.weights[rows] = p
            for key, tensor in self.state.items():
                tensor[rows] = state[key]
        self.grads[rows] = 0
        return torch.stack((norms, clipped))

    @torch.no_grad()
    def unscale(self, places: Sequence[int]) -> list[int]:
        """Take the fp16 loss scale out of the gradients; return the places whose gradients are finite.

        A gradient that overflowed is thrown away and its run's scale halved; 2,000 clean updates double it, as
        torch.amp.GradScaler does.
        """
        good = []
        for place in places:
            grad = self.grads[place].div_(self.scales[place])
            if bool(grad.isfinite().all()):
                good.append(place)
                self.clean[place] += 1
                if self.clean[place] % 2000 == 0:
                    self.scales[place] *= 2
            else:
                grad.zero_()
                self.clean[place] = 0
                self.scales[place] = max(1.0, self.scales[place] / 2)
        return good

    def _step(self, p: Tensor, g: Tensor, state: dict[str, Tensor], coefficients: Sequence[Coefficients]) -> None:
        rule = self.config.optimizer
        columns = {key: [c[key] for c in coefficients] for key in coefficients[0]}
        c = {
            key: column[0] if len(column) == 1 else torch.tensor(column, device=self.device)[:, None]
            for key, column in columns.items()
        }
        for part, decays in (
            (slice(0, self.matrices), True),
            (slice(self.matrices, None), rule.decay == "all"),
        ):
            tensors = {key: tensor[:, part] for key, tensor in state.items()}
            rule.update(p[:, part], g[:, part], tensors, c if decays else c | {"decay": 0.0})

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return summed nats and the number of targets predicted right, (K,) each. x, y: (B, T), for all runs."""
        self.network.eval()
        with self.autocast():
            return self.score({}, x, y)

    def autocast(self) -> torch.autocast:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.run.precision)
        return torch.autocast(self.device.type, dtype=half or torch.bfloat16, enabled=half is not None)

    def _each(self, measure: Measure, shared: bool) -> Callable[..., Any]:
        """Return measure(logits, y) for each run, stacked. shared: x and y are the same for all runs."""

        def one(leaves: Named, buffers: Named, x: Tensor, y: Tensor) -> Any:
            return measure(functional_call(self.network, {**leaves, **buffers}, (x,), tie_weights=False), y)

        def alone(buffers: Named, x: Tensor, y: Tensor) -> Any:
            for name, b in buffers.items():
                self.network.get_buffer(name).copy_(b[0])
            found = measure(self.network(x), y) if shared else measure(self.network(x[0]), y[0])
            return tuple(f[None] for f in found) if isinstance(found, tuple) else found[None]

        def side_by_side(buffers: Named, x: Tensor, y: Tensor) -> Any:
            batch = None if shared else 0
            return vmap(one, in_dims=(0, 0, batch, batch))(self.leaves, buffers, x, y)

        # K = 1 goes without vmap and functional_call, which at small sizes cost up to half the speed.
        return alone if self.size == 1 else side_by_side


def nats(logits: Tensor, y: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats. logits: (B, T, V); y: (B, T), -1 where nothing is scored."""
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")


def score(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy and the number of targets predicted right."""
    return nats(logits, y), (logits.argmax(-1) == y).sum()


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function

"""The context of one forward pass, which the network passes to its layers.

Shapes: K runs, B sequences, T tokens, D head width.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from model.nn.dropout import dropout

Weights = Mapping[str, Tensor]
"""Parameters of K runs by name, each with a leading axis of length K."""

Diagnostics = dict[str, list[Tensor]]
"""Measurements by name, one tensor per layer, (K, ...). A layer appends a measurement only if its name is a key."""


class ForwardContext(NamedTuple):
    """What the layers need in one forward pass besides the residual stream."""

    shape: tuple[int, int, int]
    """K, B, T of the pass."""
    numbers: Mapping[str, Tensor]
    """Numbers in which the runs of a pack can differ, such as dropout probabilities; (K,) each."""
    active: frozenset[str]
    """Names of the numbers that are above 0 in any run of the pack; empty in evaluation."""
    key: Tensor
    """Key of all random numbers of the pass in each run, (K,) int32."""
    rotary: tuple[Tensor, Tensor] | None
    """Cosine and sine of the rotary position embedding, (T, D/2) each; None without rotary positions."""
    explicit: bool
    """Whether attention weights are computed explicitly even if no dropout acts on them."""
    mask: Tensor | None
    """Where a query may attend to a key, (K B, 1, T, T); None: to all keys that are not later."""
    diagnostics: Diagnostics
    """Measurements of the pass."""
    valid: Tensor | None = None
    """Which tokens are not padding, (K, B T), for the diagnostics; None: all tokens."""

    def measure_size(self, x: Tensor) -> Tensor:
        """Append the mean absolute value of activations to the diagnostic "size" if it is requested. Return x itself.

        x: (K, B T, ...).
        """
        if "size" in self.diagnostics:
            sizes = x.detach().float().abs().flatten(2).mean(-1)
            self.diagnostics["size"].append(mean_over_tokens(sizes, self.valid))
        return x

    def drop(self, x: Tensor, name: str, site: int) -> Tensor:
        """Apply dropout with the probability `name`. Return x itself if that is 0 in every run of the pack.

        x: elements of the first run, then those of the next run, in any shape. site: number of this place in the
        network, which selects its random numbers.
        """
        return dropout(x, self.numbers[name], self.key, site) if name in self.active else x


def mean_over_tokens(x: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean of each run over its tokens, (K,). x: (K, B T). valid: (K, B T); None: all tokens."""
    return x.mean(1) if valid is None else (x * valid).sum(1) / valid.sum(1)

"""The state of one forward pass, handed from the network to its layers.

Shapes: B sequences, T tokens, D head width.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from model.nn.dropout import dropout

Diagnostics = dict[str, list[Tensor]]


class ForwardContext(NamedTuple):
    """What the layers need of one forward pass beside the residual stream."""

    numbers: Mapping[str, Tensor]
    """Numbers in which the runs of a pack may differ, such as dropout probabilities; 0-D each."""
    active: frozenset[str]
    """Which of the numbers are above 0 in any run of the pack; empty in evaluation."""
    key: Tensor
    """Key of all random numbers of the pass, 0-D int32."""
    rotary: tuple[Tensor, Tensor] | None
    """Cosine and sine of the rotary position embedding, (T, D/2) each; None without it."""
    explicit: bool
    """Whether attention weights are computed explicitly even where no dropout acts on them."""
    mask: Tensor | None
    """Where a query may attend to a key, (B, 1, T, T); None: everywhere that is not later."""
    diagnostics: Diagnostics
    """Measurements that layers append to, where the key is present."""
    valid: Tensor | None = None
    """Which tokens are not padding, (B, T), for the diagnostics; None: all."""

    def drop(self, x: Tensor, name: str, site: int) -> Tensor:
        """Apply dropout with the probability `name`; return x itself where that is 0 in every run of the pack.

        site: number of the place in the network, which selects its random numbers.
        """
        return dropout(x, self.numbers[name], self.key, site) if name in self.active else x

"""Forward and backward passes of K runs of equal shape, without the pack that holds their weights.

Shapes: K runs, B sequences, T tokens, N = B T, V vocabulary, P parameters.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from model.nn.architecture import MoE
from model.nn.context import Diagnostics, Weights
from model.nn.gpt import Network


class Passes:
    """The passes of a network in one precision."""

    def __init__(self, network: Network, precision: str) -> None:
        self.network, self.device = network, network.no_key.device
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def autocast(self) -> torch.autocast:
        """Return the context of mixed precision."""
        return torch.autocast(self.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None)

    def grads(
        self,
        w: Weights,
        numbers: Mapping[str, Tensor],
        keys: Tensor,
        x: Tensor,
        y: Tensor,
        token_weights: Tensor,
        balance_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the summed nats of each run, (K,), and the gradients of its weighted loss, (K, P).

        w: leaves that require gradients. numbers, keys: as in a call of the network. x, y: inputs and targets,
        (K, B, T); y is -1 where a target is masked. token_weights: weights of one token's loss, (K,). balance_weights:
        weights of the load-balancing loss, (K,).
        """
        diagnostics: Diagnostics = {"balance": []} if isinstance(self.network.config, MoE) else {}
        with self.autocast():
            sums = summed_cross_entropy(self.network(w, x, numbers, keys, diagnostics), y)
        loss = (sums * token_weights).sum()
        for balance_loss in diagnostics.get("balance", []):  # one for each layer with experts
            loss = loss + (balance_loss * balance_weights).sum()
        grads = torch.autograd.grad(loss, list(w.values()))
        return sums.detach(), torch.cat([grad.reshape(len(sums), -1) for grad in grads], dim=1)

    def scores(self, w: Weights, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy and the number of correct predictions, (K,) each. x, y: (K, B, T)."""
        with self.autocast():
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

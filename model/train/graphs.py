"""The compiled graphs of a pack: gradients of a micro-step, an optimizer step, scores of a validation batch.

All packs of equal shape in a process share the compiled code, whatever the numbers of their runs. A pack with several
runs computes the optimizer step of all of them and writes those that take it, so that a run has the same bits whichever
other runs take a step.

Shapes: K runs, P parameters, C coefficients.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from model.config import TrainConfig
from model.nn.gpt import Network
from model.train.compiled import Graph, bind, compile_graph
from model.train.params import AVERAGE, PackParams
from model.train.passes import Passes
from model.train.tables import Layout

_code: dict[Hashable, Graph] = {}  # compiled functions of this process, by everything on which their code depends


def build_network(config: TrainConfig, vocab_size: int, device: torch.device) -> Network:
    """Return the network of a configuration."""
    padded, explicit = config.data.layout == "documents", config.run.attention == "explicit"
    return Network(config.model, vocab_size, device, padded, explicit)


class PackGraphs:
    """The compiled functions of one pack."""

    def __init__(self, config: TrainConfig, vocab_size: int, params: PackParams) -> None:
        self.config, self.vocab_size, self.params = config, vocab_size, params
        self.size, self.device = len(params.weights), params.weights.device
        self.key = (config.pack_key(), vocab_size, self.size, self.device, torch.get_num_threads())
        self.guarded = config.recovery.watches() or config.run.precision == "fp16"
        self._bound: dict[Hashable, Graph] = {}

    def accumulate(self, numbers: Mapping[str, Tensor], *batch: Tensor) -> Tensor:
        """Add the gradients of a micro-step; return the summed nats of each run, (K,).

        numbers: as in `Passes.grads`. batch: its other arguments after the weights.
        """
        names = tuple(numbers)
        fixed = [self.params.weights, self.params.grads]
        graph = self._graph(
            ("accumulate", names), lambda: self._accumulation(names), fixed, [*batch, *numbers.values()]
        )
        sums: Tensor = graph(*batch, *numbers.values())
        return sums

    def scores(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy and the number of correct predictions, (K,) each. x, y: (B, T)."""
        graph = self._graph(("scores", *x.shape), self._scoring, [self.params.weights], [x, y])
        nats, correct = graph(x, y).unbind(0)
        return nats, correct

    def update(self, layout: Layout, measured: Tensor, *numbers: Tensor) -> None:
        """Take one optimizer step, add to `measured`, and set the gradients of the step to zero.

        layout: of the coefficients. measured: sums of gradient norms and clipped fractions, (2, K). numbers: norms of
        the gradients, (K,), and the coefficients, (C, K, 1). Several runs also need the lanes whose gradients are
        complete, (K,) bool. Guarded runs need these and the lanes that take the step. Runs that can roll back also need
        the lanes that return to their backup.
        """
        views = [view for _, view in self._views(self.params.blocks())]
        backups = [view for _, view in self._views(self.params.backups)] if self.params.backups else []
        fixed = [self.params.grads, measured, *views, *backups]
        self._graph("update", lambda: self._updating(layout), fixed, numbers)(*numbers)
        # Not within the graph: torch 2.10 and 2.11 clear them before some groups have read their columns.
        if self.size == 1:
            self.params.grads.zero_()
        else:
            self.params.grads.masked_fill_(numbers[2][:, None], 0)

    def _graph(
        self, name: Hashable, function: Callable[[], Graph], fixed: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Graph:
        """Return a compiled function of this pack, which is compiled if no pack of this shape has done so."""
        if name not in self._bound:
            key = (name, *self.key)
            if key not in _code:
                _code[key] = compile_graph(function(), [*fixed, *inputs])
            self._bound[name] = bind(_code[key], fixed, self.device)
        return self._bound[name]

    def _passes(self) -> Passes:
        # Within a trace, so that the tensors of the network are part of the graph.
        return Passes(build_network(self.config, self.vocab_size, self.device), self.config.run.precision)

    def _leaves(self, weights: Tensor) -> dict[str, Tensor]:
        spans, shapes = self.params.spans, self.params.shapes
        return {name: weights[:, a:b].reshape(self.size, *shapes[name]) for name, (a, b) in spans.items()}

    def _accumulation(self, names: Sequence[str]) -> Graph:
        def accumulate(weights: Tensor, grads: Tensor, *inputs: Tensor) -> Tensor:
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in self._leaves(weights).items()}
            batch, numbers = inputs[: len(inputs) - len(names)], inputs[len(inputs) - len(names) :]
            sums, new = self._passes().grads(leaves, dict(zip(names, numbers, strict=True)), *batch)
            grads.add_(new)
            return sums

        return accumulate

    def _scoring(self) -> Graph:
        def scores(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
            x, y = (t.expand(self.size, *t.shape) for t in (x, y))
            nats, correct = self._passes().scores(self._leaves(weights), x, y)
            return torch.stack((nats, correct.float()))

        return scores

    def _updating(self, layout: Layout) -> Graph:
        params, keys = self.params, [key for key, _ in self._views(self.params.blocks())]
        n = len(keys)

        def update(grads: Tensor, measured: Tensor, *inputs: Tensor) -> None:
            old, rest = dict(zip(keys, inputs, strict=False)), inputs[n:]
            backups = dict(zip(keys, rest, strict=False)) if params.backups else {}
            norms, coefficients, *masks = rest[len(backups) :]
            accepted = masks[1] if len(masks) > 1 else masks[0] if masks else None
            rolled_back = masks[2] if len(masks) > 2 else None
            new = {key: view.clone() for key, view in old.items()}
            step = layout.unpack(coefficients)
            fractions = self._step(new, grads.clone(), norms, step)
            added = torch.stack((norms, fractions))
            if accepted is None:
                measured.add_(added)
            else:
                total = measured + torch.where(accepted, added, 0)
                measured.copy_(total if rolled_back is None else torch.where(rolled_back, 0, total))
            for key, view in old.items():
                kept = view if rolled_back is None else torch.where(rolled_back[:, None], backups[key], view)
                view.copy_(new[key] if accepted is None else torch.where(accepted[:, None], new[key], kept))

        return update

    def _step(self, new: Mapping[tuple[str, int], Tensor], g: Tensor, norms: Tensor, step: Any) -> Tensor:
        """Clip gradients and update all blocks in place; return the fraction that was clipped, (K,)."""
        params, bounded = self.params, []
        clip_state = {key: new[f"clip.{key}", 0] for key in params.clip_state}
        clipped = params.clip.clip(g, norms, clip_state, step.clip, params.row)
        for i, group in enumerate(params.groups):
            p = new["weights", i]
            state = {key: new[key, i] for key in params.state if key != AVERAGE and (key, i) in new}
            of_group = params.step_group(group, p, group.columns(g), state, step.optimizer[i], step.clip)
            bounded += [] if of_group is None else [of_group]
            if (AVERAGE, i) in new:
                new[AVERAGE, i].lerp_(p, step.ema_rate)
        fractions = torch.cat(bounded, dim=1).float().mean(dim=1) if bounded else clipped
        return torch.zeros_like(norms) if fractions is None else fractions

    def _views(self, blocks: Mapping[str, Tensor]) -> Iterator[tuple[tuple[str, int], Tensor]]:
        """Yield the columns of each parameter group in each block, by name of the block and number of the group.

        As separate arguments they are written in place, without copies of whole blocks.
        """
        for name, block in blocks.items():
            if name.startswith("clip."):
                yield (name, 0), block
                continue
            offset = self.params.offsets[name]
            for i, group in enumerate(self.params.groups):
                if offset <= group.start and group.stop <= offset + block.shape[1]:
                    yield (name, i), group.columns(block, offset)

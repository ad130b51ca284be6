"""What memory a run needs: by going through its first update with tensors that have a shape and no memory."""

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import TrainConfig
from model.memory.capacity import calibrated
from model.nn.architecture import MoE
from model.nn.gpt import Network
from model.section import updated
from model.train.device import resolve
from model.train.evaluate import EVAL_LOGITS, EVAL_TOKENS
from model.train.pack import Pack
from model.train.params import StepCoefficients


class Memory(NamedTuple):
    """Bytes that K runs side by side need at their peak, by what they are for."""

    parameters: int
    gradients: int
    optimizer: int
    """Its running means."""
    other: int
    """Averages of the weights, what clipping remembers, copies to roll back to, tables of the network."""
    activations: int
    """What a forward pass keeps for the backward pass, logits included."""
    workspace: int
    """What comes and goes in backward pass, update or validation, whichever needs most."""

    @property
    def total(self) -> int:
        return sum(self)


def estimate(config: TrainConfig, vocab_size: int, runs: int = 1) -> Memory:
    """Return what a pack of `runs` runs like this one will need, without allocating any of it.

    Forward, backward, update and validation are the real ones. Gradient accumulation adds nothing; torch.compile,
    which saves some, is left out, as are the memory of kernels and libraries and what the allocator loses: see
    `calibrated`. The experts of a mixture are taken to be equally busy.
    """
    # On the CPU, whose rules the shapes of a GPU follow: a machine without one can then ask about one. How weights are
    # drawn changes no shape, and the way of glorot looks at the numbers drawn.
    config = updated(resolve(config), {"run.compile": "off", "model.init": "normal"})
    with FakeTensorMode(), Ledger(config, runs) as ledger, _not_moved():
        pack = Pack(config, vocab_size, runs, torch.device("cpu"))
        pack.numbers = [config.regularization.numbers() | config.model.numbers()] * runs
        if config.recovery.name == "rollback":
            for lane in range(runs):
                pack.params.backup(lane)
        standing = ledger.live
        activations = _train(pack, config, ledger)
        _update(pack, config)
        _validate(pack, config, ledger)
        params = pack.params
        parameters, gradients = _size(params.weights), _size(params.grads)
        optimizer = sum(_size(params.state[key]) for key in params.optimizer.state_groups())
    other = standing - parameters - gradients - optimizer
    return Memory(parameters, gradients, optimizer, other, activations, ledger.peak - standing - activations)


def fits(config: TrainConfig, vocab_size: int, runs: int, limit: int) -> str | None:
    """Return why runs like this one do not fit in `limit` bytes, such as "needs about 12.3 GB, 8.0 GB are there"."""
    needed = calibrated(_remembered(config, vocab_size, runs), resolve(config).run.device)
    return None if needed <= limit else f"needs about {gigabytes(needed)}, {gigabytes(limit)} are there"


def gigabytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 5e7 else f"{n / 1e9:.2g} GB"


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, each piece of storage once."""

    def __init__(self, config: TrainConfig, runs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self._shape, self._runs = config.model, runs
        self.held: dict[int, weakref.ref[Any]] = {}  # storage by its address
        self._loads: Iterator[int] = iter(())
        self._repeats = 0

    def share(self, tokens: int) -> None:
        """Let the experts of a layer share the assignments of so many tokens of each run evenly."""
        if isinstance(self._shape, MoE):
            n, rest = divmod(tokens * self._shape.top_k, self._shape.n_expert)
            self._loads = itertools.cycle([n + (expert < rest) for expert in range(self._shape.n_expert)])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(self._shape, MoE):
            return next(self._loads)  # the number of tokens of an expert is all that is ever asked for
        if func is torch.ops.aten.lift_fresh.default and args[0].dtype == torch.int64:
            with unset_fake_temporarily():
                self._repeats = int(args[0].sum())
        if func is torch.ops.aten.repeat_interleave.Tensor:  # of how often each is repeated, written out just before
            kwargs = {"output_size": self._repeats}
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return found

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.held:
            self.held[key] = weakref.ref(storage, lambda _: self._drop(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        del self.held[key]
        self.live -= size


@contextmanager
def _not_moved() -> Iterator[None]:
    """Leave networks on the device that they were built on: torch cannot move a tensor that has no memory."""
    Network.to = lambda self, device: self  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del Network.to


def _train(pack: Pack, config: TrainConfig, ledger: Ledger) -> int:
    """Go through the first micro-step; return the bytes that forward keeps for backward."""
    kept: dict[int, int] = {}
    standing = set(ledger.held)

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in standing:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    K, B, T = pack.size, config.run.batch_size, config.model.context
    x, y = (torch.zeros(K, B, T, dtype=torch.int64) for _ in range(2))
    ledger.share(B * T)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pack.accumulate_grads(x, y, [0] * K, [1.0] * K, [1.0] * K)
    return sum(kept.values())


def _update(pack: Pack, config: TrainConfig) -> None:
    """Go through an update, of all runs and of all but one, which needs copies of their rows."""
    rule = config.optimizer
    coefficients = [rule.coefficients(group.name, rule.lr, 1) | {"rate": rule.lr} for group in pack.params.groups]
    step = StepCoefficients(coefficients, config.clip.numbers(), 0.5)
    for n in {pack.size, max(1, pack.size - 1)}:
        lanes = list(range(n))
        pack.params.update(lanes, [step] * n, pack.params.grad_norms(lanes), lanes)


def _validate(pack: Pack, config: TrainConfig, ledger: Ledger) -> None:
    """Go through a validation batch, as the average of the weights is scored where there is one."""
    T = config.model.context
    rows = max(1, min(EVAL_TOKENS, EVAL_LOGITS // (pack.vocab_size * pack.size)) // T)
    x, y = (torch.zeros(rows, T, dtype=torch.int64) for _ in range(2))
    ledger.share(rows * T)
    with nullcontext() if config.regularization.ema is None else pack.params.averaged():
        pack.evaluate(x, y)
    if config.run.diagnostics:
        pack.network.padded = False  # which tokens are padding is in the text alone
        rows = max(1, min(EVAL_TOKENS, EVAL_LOGITS // pack.vocab_size) // T)
        ledger.share(rows * T)
        pack.diagnostics(0, torch.zeros(rows, T, dtype=torch.int64))


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


_totals: dict[tuple[Any, ...], int] = {}


def _remembered(config: TrainConfig, vocab_size: int, runs: int) -> int:
    """Return the estimate's total, which the same shapes need not be gone through again for."""
    numbers = config.regularization.numbers() | config.model.numbers()
    active = frozenset(name for name, value in numbers.items() if value > 0)
    key = (resolve(config).pack_key(), active, vocab_size, runs)
    if key not in _totals:
        _totals[key] = estimate(config, vocab_size, runs).total
    return _totals[key]

"""Estimate the memory of a run, by executing its first update with fake tensors, which have a shape and no memory."""

import weakref
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import TrainConfig
from model.memory.capacity import calibrated
from model.section import updated
from model.train.device import resolve
from model.train.evaluate import EVAL_LOGITS, EVAL_TOKENS
from model.train.pack import Pack
from model.train.probe import copied_tensors
from model.train.run_state import StepNumbers
from model.train.tables import StepTable


class MemoryEstimate(NamedTuple):
    """Bytes that K runs in one pack need at their peak, by purpose."""

    parameters: int
    gradients: int
    optimizer: int
    """State of the optimizer."""
    other: int
    """Averages of the weights, state of the clipping rule, copies for a rollback or a probe, buffers of the network."""
    activations: int
    """Tensors that the forward pass saves for the backward pass, logits included."""
    workspace: int
    """Temporary tensors of backward pass, update or validation, whichever needs most."""

    @property
    def total(self) -> int:
        return sum(self)


def estimate_memory(config: TrainConfig, vocab_size: int, runs: int = 1, probed: bool = False) -> MemoryEstimate:
    """Return the memory that a pack of `runs` runs of this config needs, without allocating it.

    probed: whether the runs have cool-down probes. On a CPU, these copy the runs into the same memory.

    The function executes the real forward pass, backward pass, update and validation. Gradient accumulation adds
    nothing. The estimate excludes the savings of torch.compile, the memory of kernels and libraries and fragmentation
    in the allocator; `calibrated` corrects for these.
    """
    # Shapes are the same on CPU and GPU, so a machine without a GPU can estimate a run on a GPU.
    config = updated(resolve(config), {"run.compile": "off"})
    with FakeTensorMode(), AllocationTracker() as tracker:
        pack = Pack(config, vocab_size, runs, torch.device("cpu"))
        for lane in range(runs):
            pack.set_numbers(lane, config)
        if config.recovery.name == "rollback":
            for lane in range(runs):
                pack.params.backup(lane)
        copies = [t.clone() for t in copied_tensors(pack)] if probed and config.run.device == "cpu" else []
        resident = tracker.live
        activations = _train(pack, config, tracker)
        _update(pack, config)
        _validate(pack, config)
        params = pack.params
        parameters, gradients = _size(params.weights), _size(params.grads)
        optimizer = sum(_size(params.state[key]) for key in params.optimizer.state_groups())
        del copies
    other = resident - parameters - gradients - optimizer
    return MemoryEstimate(parameters, gradients, optimizer, other, activations, tracker.peak - resident - activations)


def memory_shortage(config: TrainConfig, vocab_size: int, runs: int, limit: int, probed: bool = False) -> str | None:
    """Return how far a pack of `runs` runs exceeds `limit` bytes, or None if it fits.

    probed: as in `estimate_memory`.

    The text is such as "needs about 12.3 GB, 8.0 GB are available".
    """
    needed = calibrated(_total(config, vocab_size, runs, probed), resolve(config).run.device)
    return None if needed <= limit else f"needs about {gigabytes(needed)}, {gigabytes(limit)} are available"


def gigabytes(n: float) -> str:
    """Return a number of bytes as text in GB, such as "12.3 GB" or "0.03 GB"."""
    return f"{n / 1e9:.1f} GB" if n >= 5e7 else f"{n / 1e9:.2g} GB"


class AllocationTracker(TorchDispatchMode):
    """Count the bytes of all live tensors. Tensors that share a storage count once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self.storages: dict[int, weakref.ref[Any]] = {}  # by address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self._drop(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        del self.storages[key]
        self.live -= size


def _train(pack: Pack, config: TrainConfig, tracker: AllocationTracker) -> int:
    """Execute the first micro-step. Return the bytes that the forward pass saves for the backward pass."""
    saved: dict[int, int] = {}
    resident = set(tracker.storages)

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in resident:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    K, B, T = pack.size, config.run.batch_size, config.model.context
    x, y = (torch.zeros(K, B, T, dtype=torch.int64) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        pack.accumulate_grads(x, y, torch.zeros(K, dtype=torch.int32), torch.ones(K), torch.ones(K))
    return sum(saved.values())


def _update(pack: Pack, config: TrainConfig) -> None:
    """Execute an update of all runs, and one of all runs but one, which needs copies of their rows."""
    rule = config.with_raw_fields().optimizer
    coefficients = [rule.coefficients(group.name, rule.lr, 1) | {"rate": rule.lr} for group in pack.params.groups]
    numbers = StepNumbers(coefficients, config.clip.numbers(), 0.5)
    for n in {pack.size, max(1, pack.size - 1)}:
        lanes = list(range(n))
        step = StepTable([numbers] * n, 1, torch.device("cpu")).at(0)
        guarded = config.recovery.watches() or config.run.precision == "fp16"
        accepted = torch.ones(n, dtype=torch.bool) if guarded else None
        rolled_back = accepted if config.recovery.name == "rollback" else None
        pack.params.update(lanes, step, pack.params.grad_norms(lanes), lanes, accepted, rolled_back)


def _validate(pack: Pack, config: TrainConfig) -> None:
    """Evaluate one validation batch, with the average of the weights if there is one."""
    T = config.model.context
    rows = max(1, min(EVAL_TOKENS, EVAL_LOGITS // (pack.vocab_size * pack.size)) // T)
    x, y = (torch.zeros(rows, T, dtype=torch.int64) for _ in range(2))
    with nullcontext() if not config.regularization.has_average() else pack.params.averaged():
        pack.evaluate(x, y)
    if config.run.diagnostics:
        pack.network.padded = False  # padding depends on the values of tokens, which fake tensors do not have
        rows = max(1, min(EVAL_TOKENS, EVAL_LOGITS // pack.vocab_size) // T)
        pack.diagnostics(0, torch.zeros(rows, T, dtype=torch.int64))


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


_totals: dict[tuple[Any, ...], int] = {}


def _total(config: TrainConfig, vocab_size: int, runs: int, probed: bool) -> int:
    """Return the total of the estimate in bytes, cached by everything that changes a shape."""
    numbers = config.regularization.numbers() | config.model.numbers()
    active = frozenset(name for name, value in numbers.items() if value > 0)
    key = (resolve(config).pack_key(), active, vocab_size, runs, probed)
    if key not in _totals:
        _totals[key] = estimate_memory(config, vocab_size, runs, probed).total
    return _totals[key]

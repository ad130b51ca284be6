"""Tables of what the next micro-steps of a pack need, built on the device before the first of them.

Between two tables, a step makes no tensor from Python numbers and copies nothing to the device.

Shapes: n micro-steps, K runs, B sequences, T tokens, C coefficients.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.train.resident import ResidentSplit
from model.train.run_state import RunState, StepNumbers

MAX_STEPS, MAX_TOKENS = 64, 2**19  # of one table, all runs together


class StepCoefficients(NamedTuple):
    """The numbers of one optimizer step of K runs on the device, (K, 1) each."""

    optimizer: Sequence[Mapping[str, Tensor]]
    """Coefficients of the optimizer for each parameter group; "rate" is the learning rate itself."""
    clip: Mapping[str, Tensor]
    """Numbers of the clipping rule."""
    ema_rate: Tensor
    """Weight of the new weights in the exponential moving average, in [0, 1]."""

    def packed(self) -> Tensor:
        """Return all numbers as one tensor in the order of `layout`, (C, K, 1)."""
        groups = [value for own in self.optimizer for value in own.values()]
        return torch.stack([*groups, *self.clip.values(), self.ema_rate])

    def layout(self) -> "Layout":
        """Return the order of the numbers."""
        return Layout([list(own) for own in self.optimizer], list(self.clip))


class Layout(NamedTuple):
    """How the coefficients of a step are ordered in one tensor, (C, K, 1)."""

    groups: Sequence[Sequence[str]]
    """Names of the coefficients of each parameter group."""
    clip: Sequence[str]
    """Names of the numbers of the clipping rule."""

    def unpack(self, numbers: Tensor) -> StepCoefficients:
        """Return the coefficients of a step. numbers: (C, K, 1)."""
        values = iter(numbers.unbind(0))
        groups = [{key: next(values) for key in keys} for keys in self.groups]
        return StepCoefficients(groups, {key: next(values) for key in self.clip}, next(values))


class StepTable:
    """The numbers of the optimizer steps in n micro-steps of K runs."""

    def __init__(self, runs: Sequence[StepNumbers], n: int, device: torch.device) -> None:
        """Copy the numbers to the device. runs: numbers of each run, floats or (n,) arrays."""
        self.n, self.layout = n, Layout([list(c) for c in runs[0].optimizer], list(runs[0].clip))
        rows = np.array([[np.broadcast_to(value, n) for value in run.values()] for run in runs])  # (K, C, n)
        with np.errstate(over="ignore"):  # of a learning rate above the largest float32
            numbers = np.ascontiguousarray(rows.transpose(2, 1, 0), np.float32)
        self.numbers = to_device(numbers, device)[..., None]  # (n, C, K, 1)

    def at(self, row: int, lanes: Tensor | None = None) -> StepCoefficients:
        """Return the numbers of one micro-step. lanes: the runs to return, (L,); None: all runs."""
        return self.layout.unpack(self.numbers[row] if lanes is None else self.numbers[row].index_select(1, lanes))


class BatchTable(NamedTuple):
    """Inputs, random keys and loss weights of n micro-steps on the device. Empty lanes have weight 0."""

    x: Tensor
    """Input tokens, (n, K, B, T)."""
    y: Tensor
    """Targets, (n, K, B, T); -1 where a target is masked."""
    keys: Tensor
    """Keys of the random numbers in the network, (n, K) int32."""
    token_weights: Tensor
    """Weights of one token's loss, (n, K)."""
    micro_step_weights: Tensor
    """Weights of one micro-step's loss, (n, K)."""


def table_size(micro_steps: int, tokens: int) -> int:
    """Return how many of the next micro-steps one table holds. tokens: of one micro-step of all runs."""
    return max(1, min(micro_steps, MAX_STEPS, MAX_TOKENS // tokens))


def build_batches(
    runs: Mapping[int, RunState],
    shape: tuple[int, int, int],
    n: int,
    device: torch.device,
    resident: ResidentSplit | None = None,
) -> BatchTable:
    """Return what the next n micro-steps of the runs read.

    runs: by lane. shape: K, B, T. resident: the training split on the device; None: batches are copied there.
    """
    keys, weights = np.zeros((n, shape[0]), np.int32), np.zeros((2, n, shape[0]), np.float32)
    for lane, run in runs.items():
        keys[:, lane] = run.dropout_keys(n)
        weights[:, :, lane] = run.loss_weights(n)
    windows = None if resident is None else _resident_windows(runs, shape, n, resident)
    x, y = _host_windows(runs, shape, n, device) if windows is None else windows
    return BatchTable(x, y, *(to_device(array, device) for array in (keys, *weights)))


def _host_windows(
    runs: Mapping[int, RunState], shape: tuple[int, int, int], n: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, (n, K, B, T) each, gathered by the CPU."""
    K, B, T = shape
    x, y = np.zeros((n, K, B, T), np.int64), np.full((n, K, B, T), -1, np.int64)
    for lane, run in runs.items():
        inputs, targets = run.next_batches(n)
        x[:, lane], y[:, lane] = inputs.reshape(n, B, T), targets.reshape(n, B, T)
    return to_device(x, device), to_device(y, device)


def _resident_windows(
    runs: Mapping[int, RunState], shape: tuple[int, int, int], n: int, resident: ResidentSplit
) -> tuple[Tensor, Tensor] | None:
    """Return inputs and targets, (n, K, B, T) each, gathered on the device.

    None if documents are dropped or shuffled, so that an epoch has a token stream of its own.
    """
    K, B, T = shape
    rows = np.zeros((2, n, K, B), np.int64)  # first and length; an empty lane has no targets
    for lane, run in runs.items():
        parts = run.next_rows(n)
        if any(part.tokens is not resident.source for part in parts):
            return None
        for of_rows, column in zip(rows, ("first", "length"), strict=True):
            of_rows[:, lane] = np.concatenate([getattr(part, column) for part in parts]).reshape(n, B)
    first, length = to_device(rows, resident.tokens.device)
    return resident.windows(first, length, T)


def build_steps(
    runs: Mapping[int, RunState], size: int, groups: Sequence[Any], first: int, n: int, device: torch.device
) -> StepTable:
    """Return the numbers of the optimizer steps of n micro-steps, in which no update fails.

    size: K. first: number of micro-steps from the current one of each run to the first row of the table.
    """
    numbers = {lane: run.step_numbers(groups, first, n) for lane, run in runs.items()}
    unused = next(iter(numbers.values()))  # of empty lanes, which take no step
    return StepTable([numbers.get(lane, unused) for lane in range(size)], n, device)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device; to a GPU from pinned memory, so that the CPU does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

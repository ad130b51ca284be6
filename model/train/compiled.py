"""Compile functions of tensors to graphs, in which no Python runs. A GPU replays them as CUDA graphs.

A function is traced once for the shapes of its arguments, and torch's compiler, Inductor, translates the trace. Code is
stored in the cache folder, where all processes of the machine find it.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from model.cache import cache_root, locked
from model.errors import ConfigError

Graph = Callable[..., Any]
"""A compiled function of tensors. It may change its arguments in place."""


def compile_graph(function: Graph, arguments: Sequence[Tensor]) -> Graph:
    """Return a function that computes the same, for arguments of the same shapes and types.

    function: takes tensors and returns a tensor or None. Its Python code runs only here.

    Raises:
        ConfigError: this machine has no compiler that works.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx  # importing the compiler takes 2 s
    from torch._inductor.exc import InductorError
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    folder = cache_root() / "compiled" / f"{torch.get_num_threads()}-threads"  # the code contains their number
    # One C++ program calls all kernels and is compiled with them. On a GPU a CUDA graph replaces the caller.
    on_cpu = all(tensor.device.type == "cpu" for tensor in arguments)
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    with mode:  # tensors without memory, and no two share it: torch would copy arguments that may overlap
        examples: list[Any] = [_like(tensor) for tensor in arguments]
        trace = make_fx(function)(*examples)
    # Workers that need the same code wait for the first of them. Others compile at the same time, up to collisions.
    number = zlib.crc32(f"{trace.code} {examples}".encode()) % 64
    lock = locked(folder.with_name(f"{folder.name}-{number}"))
    with lock, patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(folder)}), _ordered_sums():
        try:
            with tracing(TracingContext(mode)):
                compiled: Any = compile_fx(
                    trace, examples, config_patches={"cpp_wrapper": on_cpu}, ignore_shape_env=True
                )
        except InductorError as error:
            raise ConfigError(
                f"run.compile: the compiler of this machine failed; use off or install a C++ compiler: {_reason(error)}"
            ) from error
    graph: Graph = compiled
    return graph


def _reason(error: Exception) -> str:
    """Return the line of an error message that names the cause: the first one, or the last one of another process."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if lines[0].endswith("subprocess:") else lines[0]).strip()


@contextmanager
def _ordered_sums() -> Iterator[None]:
    """Compile the gradient of an embedding to a call of torch's kernel, which adds in the same order in every run.

    By default it becomes a sum by atomic additions, whose order depends on the threads.
    """
    from torch._inductor import decomposition

    operator = torch.ops.aten.embedding_dense_backward.default
    logger = logging.getLogger("torch._inductor.ir")  # warns of the detour by which C++ calls this kernel
    level = logger.level
    logger.setLevel(logging.ERROR)
    rule = decomposition.decompositions.pop(operator)
    decomposition.fast_random_decomps.cache_clear()  # copies of the table
    try:
        yield
    finally:
        logger.setLevel(level)
        decomposition.decompositions[operator] = rule
        decomposition.fast_random_decomps.cache_clear()


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


class CapturedGraph:
    """A compiled function on a GPU. From the third call on, all its kernels are launched at once, as a CUDA graph."""

    def __init__(self, compiled: Graph, fixed: Sequence[Tensor]) -> None:
        """fixed: the first arguments of each call, which stay where they are."""
        self.compiled, self.fixed, self.n_calls = compiled, fixed, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.output: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """Call the function with the fixed arguments and these. A later call overwrites the result."""
        self.n_calls += 1
        if self.n_calls <= 2:  # the first calls load kernels and allocate workspaces, which a capture must not do
            return self.compiled(*self.fixed, *inputs)
        if self.graph is None:
            self._capture(inputs)
        assert self.graph is not None
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.output

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        """Record the launches of one call, without executing them."""
        self.inputs, self.graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.output = self.compiled(*self.fixed, *self.inputs)


class FixedArguments:
    """A compiled function on a CPU, with the same calls as a `CapturedGraph`."""

    def __init__(self, compiled: Graph, fixed: Sequence[Tensor]) -> None:
        self.compiled, self.fixed = compiled, fixed

    def __call__(self, *inputs: Tensor) -> Any:
        return self.compiled(*self.fixed, *inputs)


def bind(compiled: Graph, fixed: Sequence[Tensor], device: torch.device) -> Graph:
    """Return the compiled function with `fixed` as its first arguments: tensors whose memory does not move."""
    return CapturedGraph(compiled, fixed) if device.type == "cuda" else FixedArguments(compiled, fixed)

"""Run a function in eight processes at the same time, to test for race conditions."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from typing import Any

N_PROCESSES = 8
_barrier: Barrier


def _set_up(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _run_at_barrier(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    _barrier.wait(120)  # until all processes are ready
    return function(*args)


def forking_context() -> ForkServerContext:
    """Return a context whose processes are forks of one that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "hpo.worker.worker", "tests.support.control"])
    return context


class Race:
    """Eight processes that are started once and used for several races."""

    def __init__(self) -> None:
        context = forking_context()
        self._pool = ProcessPoolExecutor(
            N_PROCESSES, context, initializer=_set_up, initargs=(context.Barrier(N_PROCESSES),)
        )

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run function(i, *args) in process i, all at the same time; return the results in order.

        The function must be defined at the top level of a test module, so that it can be pickled.
        """
        futures = [self._pool.submit(_run_at_barrier, function, (i, *args)) for i in range(N_PROCESSES)]
        return [future.result(timeout=120) for future in futures]

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()

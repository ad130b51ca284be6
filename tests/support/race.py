"""Eight processes that begin the same thing at the same moment."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import Any

N_PROCESSES = 8
_barrier: Barrier


def _set_up(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _begin(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    _barrier.wait(120)  # nobody begins before all processes run
    return function(*args)


class Race:
    """The processes, started once and used for several races."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            N_PROCESSES, context, initializer=_set_up, initargs=(context.Barrier(N_PROCESSES),)
        )

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run function(i, *args) in process i, all at once, and return what each returned.

        The function is at the top level of a test module.
        """
        futures = [self._pool.submit(_begin, function, (i, *args)) for i in range(N_PROCESSES)]
        return [future.result(timeout=120) for future in futures]

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()

"""Training functions of users: generators that yield the value of one rung after the other."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from hpo.errors import user_code


class GeneratorRuns:
    """Runs of a user's training function. One generator per lane; each iteration takes one report from each."""

    def __init__(self, train: Any, configs: Sequence[BaseModel]) -> None:
        self.train = train
        self.generators: dict[int, Iterator[tuple[int, Any]]] = {}
        for lane, config in enumerate(configs):
            self.start(lane, config)

    def start(self, lane: int, config: BaseModel) -> None:
        self.generators[lane] = iter(self.train(config))

    def stop(self, lane: int) -> None:
        close_generator(self.generators.pop(lane, None))

    def finish(self, lane: int) -> int | None:
        """Run the code after the last `yield` that is used; return the next rung if the function yields again.

        Raises:
            Exception: The exception of the training function.
        """
        try:
            return _checked_item(next(self.generators[lane]))[0]
        except StopIteration:
            return None

    def save(self, lane: int, folder: Path) -> None:
        """Save nothing, because only the user's function knows its state. An interrupted trial starts again."""

    def resume(self, lane: int, folder: Path) -> int:
        raise ValueError("a training function of the user has no checkpoints, so its trial starts again")

    def __iter__(self) -> Iterator[tuple[int, dict[int, Any]]]:
        while self.generators:
            reports: dict[int, Any] = {}
            rung = 0
            for lane, generator in list(self.generators.items()):
                try:
                    with user_code():
                        item = next(generator, _END)
                    if item is _END:
                        del self.generators[lane]
                        continue
                    rung, value = _checked_item(item)
                    reports[lane] = GeneratorReport(rung, value)
                except Exception as error:  # `parse_report` raises it, so that the other lanes continue
                    reports[lane] = error
            if reports:
                yield rung, reports


_END = object()  # next() returns it after the last report of a generator


def close_generator(generator: object) -> None:
    """Close a generator, so that its `finally` blocks run. Other iterators need no end."""
    close = getattr(generator, "close", None)
    if close is not None:
        close()


class GeneratorReport(NamedTuple):
    """What a user's generator has yielded."""

    rung: int
    value: Any  # the objective, or metrics


def _checked_item(item: Any) -> tuple[int, Any]:
    if not isinstance(item, tuple) or len(item) != 2 or type(item[0]) is not int or item[0] < 1:
        raise TypeError(f"a training function must yield (rung, value), rung = 1, 2, ..., got {item!r}")
    return item

"""Training functions: what a worker drives, be it the GPT's trainer or a user's own generator.

A user's function takes a configuration and yields (rung, value) or (rung, metrics), rung 1, 2, ...; metrics is a
mapping or a named tuple that holds the study's objective by name. A class that trains several configurations side by
side, as model.train.Trainer does, is used as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from hpo.config.importer import imported
from hpo.errors import Problem

RungReports = tuple[int, dict[int, Any]]


@runtime_checkable
class Runs(Protocol):
    """Runs side by side, each in its lane; iterating trains them from rung to rung."""

    def __iter__(self) -> Iterator[RungReports]: ...
    def start(self, lane: int, config: Any) -> None: ...
    def stop(self, lane: int) -> None: ...
    def save(self, lane: int, folder: Path) -> None: ...
    def resume(self, lane: int, folder: Path) -> int: ...


class GeneratorRuns:
    """A user's generators, one a lane, each advanced by one report a beat."""

    def __init__(self, train: Any, configs: Sequence[BaseModel]) -> None:
        self.train = train
        self.lanes: dict[int, Iterator[tuple[int, Any]]] = {}
        for lane, config in enumerate(configs):
            self.start(lane, config)

    def start(self, lane: int, config: BaseModel) -> None:
        self.lanes[lane] = iter(self.train(config))

    def stop(self, lane: int) -> None:
        close = getattr(self.lanes.pop(lane, None), "close", None)
        if close is not None:
            close()

    def save(self, lane: int, folder: Path) -> None:
        """Keep nothing: only the user's function knows its state. An interrupted trial starts again."""

    def resume(self, lane: int, folder: Path) -> int:
        raise ValueError("a training function of one's own starts again")

    def __iter__(self) -> Iterator[RungReports]:
        while self.lanes:
            found: dict[int, Any] = {}
            rung = 0
            for lane, generator in list(self.lanes.items()):
                try:
                    rung, value = _checked(next(generator))
                    found[lane] = _Reported(rung, value)
                except StopIteration:
                    del self.lanes[lane]
                except Exception as error:  # told to whoever reads the report, so that its neighbours go on
                    found[lane] = error
            if found:
                yield rung, found


class _Reported(tuple[int, Any]):
    """(rung, what was yielded) of a user's generator."""

    def __new__(cls, rung: int, found: Any) -> "_Reported":
        return super().__new__(cls, (rung, found))


def _checked(item: Any) -> tuple[int, Any]:
    if not isinstance(item, tuple) or len(item) != 2 or type(item[0]) is not int or item[0] < 1:
        raise TypeError(f"a training function must yield (rung, value), rung = 1, 2, ..., got {item!r}")
    return item


def read_report(metrics: Any, objective: str) -> tuple[int, float, dict[str, Any]]:
    """Return rung, value of the objective and all metrics of one report.

    Raises:
        TypeError: the metrics do not hold the objective.
        Exception: what the training function raised instead of reporting.
    """
    if isinstance(metrics, Exception):
        raise metrics
    if isinstance(metrics, _Reported):
        rung, found = metrics
        if isinstance(found, int | float) or hasattr(found, "__float__"):
            return rung, float(found), {"rung": rung, objective: float(found)}
        fields = _fields(found)
        if objective not in fields:
            raise TypeError(f"metrics must hold the objective, {objective}, got {', '.join(map(str, fields))}")
        return rung, float(fields[objective]), {**fields, "rung": rung}
    fields = _fields(metrics)
    if objective not in fields:
        raise TypeError(f"metrics must hold the objective, {objective}, got {', '.join(map(str, fields))}")
    return int(fields["rung"]), float(fields[objective]), fields


def _fields(metrics: Any) -> dict[str, Any]:
    if isinstance(metrics, Mapping):
        return dict(metrics)
    if hasattr(metrics, "_asdict"):
        return dict(metrics._asdict())
    raise TypeError(f"metrics must be a number, a mapping or a named tuple, got {metrics!r}")


def build_runs(target: str, configs: Sequence[BaseModel], **given: Any) -> Runs:
    """Return the runs of these configurations under the training function `module:name`.

    given: passed on to a class that trains side by side.
    """
    train = imported(target, "train")
    if isinstance(train, type) and issubclass(train, Runs):
        build: Callable[..., Runs] = train
        return build(configs, **given)
    if not callable(train):
        raise Problem(f"train: must be a function, got {target}")
    return GeneratorRuns(train, configs)


def pack_key(config: BaseModel) -> str:
    """Return what configurations must share to train side by side; a user's own may always."""
    own = getattr(config, "pack_key", None)
    return str(own()) if own else ""

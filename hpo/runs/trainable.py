"""The interface between a worker and a training function.

A worker trains a pack: several configurations side by side. Each run of the pack has a lane, its position 0, 1, ...
The pack is an object with the methods of `Runs`. `build_runs` creates it from the study's `train`:

- A class with these methods, such as model.train.trainer.Trainer, is used as it is.
- A command of the user is a program that trains one configuration in a process of its own; see `hpo.runs.command`.
- A function of the user takes a configuration and yields (rung, value) or (rung, metrics) for rung 1, 2, ...
  `GeneratorRuns` advances the generators of a pack one after the other. metrics is a mapping or a named tuple that
  contains the study's objective by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from hpo.config.importer import import_target
from hpo.errors import Problem, user_code
from hpo.runs.command import CommandRuns
from hpo.runs.command_files import TrialPlace
from hpo.runs.generators import GeneratorReport, GeneratorRuns
from hpo.study.command import CommandPlan

RungReports = tuple[int, dict[int, Any]]  # rung, and by lane what the run reports: see `parse_report`


@runtime_checkable
class Runs(Protocol):
    """A pack of runs. Iterating trains all of them to their next rung and yields their reports by lane."""

    def __iter__(self) -> Iterator[RungReports]: ...

    def start(self, lane: int, config: Any) -> None:
        """Start a new run in a free lane."""

    def stop(self, lane: int) -> None:
        """End the run of a lane. Iteration ends when no run is left."""

    def save(self, lane: int, folder: Path) -> None:
        """Write a checkpoint of a run into a folder."""

    def resume(self, lane: int, folder: Path) -> int:
        """Set the run of a lane to a checkpoint and return its rung.

        Raises:
            ValueError: The checkpoint cannot be used.
            OSError: The checkpoint cannot be read.
        """


class GuardedRuns:
    """Runs whose code may raise anything: what is neither an Exception nor an Interruption becomes a UserExit."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def start(self, lane: int, config: Any) -> None:
        with user_code():
            self.runs.start(lane, config)

    def stop(self, lane: int) -> None:
        with user_code():
            self.runs.stop(lane)

    def abandon(self, lane: int) -> None:
        """End the run of a lane at once, because another attempt may already run its trial."""
        with user_code():
            self.runs.abandon(lane) if isinstance(self.runs, CommandRuns) else self.runs.stop(lane)

    def assign(self, lane: int, place: TrialPlace) -> None:
        """Tell a command which trial a lane trains."""
        if isinstance(self.runs, CommandRuns):
            self.runs.assign(lane, place)

    def rest(self) -> Iterator[tuple[int, Any]]:
        """End the processes of commands; yield (lane, metrics) for each rung that they had reported before."""
        if isinstance(self.runs, CommandRuns):
            yield from self.runs.rest()

    def close(self) -> None:
        """End the processes of the runs that are left."""
        if isinstance(self.runs, CommandRuns):
            self.runs.close()

    def finish(self, lane: int) -> int | None:
        """Run the code after the last value that is used; return the next rung if a run reports one."""
        with user_code():
            return self.runs.finish(lane) if isinstance(self.runs, GeneratorRuns | CommandRuns) else None

    def save(self, lane: int, folder: Path) -> None:
        with user_code():
            self.runs.save(lane, folder)

    def resume(self, lane: int, folder: Path) -> int:
        with user_code():
            return self.runs.resume(lane, folder)

    def probe(self, shares: Mapping[int, float]) -> dict[int, Mapping[str, float]]:
        """Return the metrics of cool-down probes, which only the GPT trainer has. shares: of the run, by lane."""
        with user_code():
            return dict(self.runs.probe(shares))  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[RungReports]:
        rungs = iter(self.runs)
        while True:
            with user_code():
                reports = next(rungs, None)
            if reports is None:
                return
            yield reports


def parse_report(report: Any, objective: str) -> tuple[int, float, dict[str, Any]]:
    """Return rung, value of the objective and all metrics from the report of one run.

    Raises:
        TypeError: The metrics do not contain the objective.
        Exception: The exception that the training function raised instead of a report.
    """
    if isinstance(report, Exception):
        raise report
    if not isinstance(report, GeneratorReport):
        metrics = _as_dict(report)
        return int(metrics["rung"]), _objective(metrics, objective), metrics
    rung, value = report
    if isinstance(value, int | float) or hasattr(value, "__float__"):
        return rung, float(value), {"rung": rung, objective: float(value)}
    metrics = _as_dict(value)
    return rung, _objective(metrics, objective), {**metrics, "rung": rung}


def _objective(metrics: Mapping[str, Any], objective: str) -> float:
    if objective not in metrics:
        raise TypeError(f"metrics must hold the objective, {objective}, got {', '.join(map(str, metrics))}")
    return float(metrics[objective])


def _as_dict(metrics: Any) -> dict[str, Any]:
    if isinstance(metrics, Mapping):
        return dict(metrics)
    if hasattr(metrics, "_asdict"):
        return dict(metrics._asdict())
    raise TypeError(f"metrics must be a number, a mapping or a named tuple, got {metrics!r}")


def build_runs(
    train: str | CommandPlan,
    configs: Sequence[BaseModel],
    stopping: Callable[[], bool] = lambda: False,
    **arguments: Any,
) -> "GuardedRuns":
    """Return a pack of these configurations under the training function `train` (`module:name`), or under a command.

    stopping: returns whether the caller was asked to stop, so that a command need not reach its next rung.
    arguments: keyword arguments for a class with the methods of `Runs`; see `PreparedDatasets.training_arguments`.

    Raises:
        Problem: The training function cannot be imported or called.
        Exception: The training code has raised it.
    """
    if isinstance(train, CommandPlan):
        return GuardedRuns(CommandRuns(train, configs, stopping))
    with user_code():
        target = import_target(train, "train")
    if not callable(target):
        raise Problem(f"train: must be a function, got {train}")
    with user_code():
        if isinstance(target, type) and issubclass(target, Runs):
            build: Callable[..., Runs] = target
            return GuardedRuns(build(configs, **arguments))
        return GuardedRuns(GeneratorRuns(target, configs))


def pack_key(config: BaseModel) -> str:
    """Return a text that is equal for configurations that can train in one pack. Users' own configurations always can.

    The runs of a pack share one batched computation, so for the GPT all shapes must be equal.
    """
    own = getattr(config, "pack_key", None)
    return str(own()) if own else ""

"""Runs of a command: the methods of `Runs`, for a program that trains one configuration in a process of its own.

Each lane of a pack is one process. `command_files` names its files in the folder of the trial.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.config.yaml import dump_yaml
from hpo.runs.command_files import FILES, OUTPUT, TrialPlace, reports_file, stop_file
from hpo.runs.command_lane import CommandLane
from hpo.runs.command_process import GRACE_S, CommandProcess
from hpo.runs.command_reports import FileReader, PatternReader, Row, RungCounter
from hpo.runs.run_dir import set_aside_folder, write_file, writing
from hpo.study.command import CONFIG, DIR, JSON, SEED, CommandPlan, filled, filled_words, value_text
from model.section import flat

TICK_S = 1.0  # seconds after which an iteration ends without a report, so that a worker sees requests and limits
POLL_S = 0.05  # seconds between two looks at the files that a script writes
FINISH_S = 600.0  # seconds that a script may run after its last value


class CommandRuns:
    """A pack of commands, each in its own process."""

    def __init__(
        self, plan: CommandPlan, configs: Sequence[BaseModel], stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Prepare one lane for each configuration. stopping: whether the worker was asked to stop."""
        self._plan, self._stopping = plan, stopping
        self._lanes: dict[int, CommandLane] = {}
        self._places: dict[int, TrialPlace] = {}
        self._changed = threading.Event()
        self._configs = dict(enumerate(configs))

    def start(self, lane: int, config: BaseModel) -> None:
        """Prepare a run in a free lane. Its process starts with the next iteration, when its trial is known."""
        self._configs[lane] = config

    def assign(self, lane: int, place: TrialPlace) -> None:
        """Say which trial a lane trains, and from which rung on."""
        self._places[lane] = place

    def stop(self, lane: int) -> None:
        """End the process of a lane: by `should_stop` if the script calls it, then by SIGTERM, then by SIGKILL."""
        found = self._drop(lane)
        if found is None or found.process is None or found.process.ended:
            return
        try:
            with suppress(OSError):
                stop_file(reports_file(found.place)).touch()
            if not (found.cooperates and found.process.wait(GRACE_S)):
                found.process.terminate()
                found.process.wait()
        finally:  # a second signal
            found.process.kill()

    def abandon(self, lane: int) -> None:
        """Kill the process of a lane, because another attempt may already run the trial."""
        found = self._drop(lane)
        if found is not None and found.process is not None:
            found.process.kill()

    def rest(self) -> Iterator[tuple[int, Row]]:
        """End all processes, each with the grace period, in which a script may save its state.

        Yield (lane, metrics) for each rung that was reported before that and not yielded yet. The state that a script
        has saved may be past it, so that the next attempt would not report it again.
        """
        lanes = dict(self._lanes)
        processes = [lane.process for lane in lanes.values() if lane.process is not None]
        try:
            for lane in lanes.values():
                lane.terminate()
            for process in processes:
                process.wait()
        finally:  # a second signal
            for process in processes:
                process.kill()
        for number, lane in lanes.items():
            lane.read_to_end()
            while (row := lane.next_row()) is not None:
                yield number, row

    def close(self) -> None:
        """End all processes and drop what they have reported."""
        for _ in self.rest():
            pass
        for lane in list(self._lanes):
            self._drop(lane)

    def save(self, lane: int, folder: Path) -> None:
        """Save nothing: only the script knows its state."""

    def resume(self, lane: int, folder: Path) -> int:
        raise ValueError("a command resumes by itself, from HPO_DIR/checkpoint")

    def finish(self, lane: int) -> int | None:
        """Wait until the script ends after its last value; return the next rung if it trains further.

        Raises:
            CommandFailed: it has failed.
            TimeoutError: it did not end in time.
        """
        found = self._lanes[lane]
        assert found.process is not None
        deadline = time.monotonic() + FINISH_S
        while not found.process.wait(POLL_S):
            found.read()
            if found.counter.exceeded:
                return found.counter.exceeded
            if time.monotonic() > deadline:
                raise TimeoutError(f"it did not end in {FINISH_S:.0f} s")
        if found.process.status != 0 and not found.stopped:
            raise found.process.failure("")
        return None

    def __iter__(self) -> Iterator[tuple[int, dict[int, Any]]]:
        """Yield the next rung of each process that has reached one; nothing after TICK_S without a rung."""
        while self._configs or self._lanes:
            failed = self._start_processes()
            reports = failed or self._wait_for_reports()
            yield max((row["rung"] for row in reports.values() if isinstance(row, dict)), default=0), reports

    def _start_processes(self) -> dict[int, Any]:
        failed: dict[int, Any] = {}
        for lane, config in list(self._configs.items()):
            del self._configs[lane]
            try:
                self._lanes[lane] = self._start(config, self._places[lane])
            except Exception as error:  # this run alone has failed, such as by a full disk
                failed[lane] = error
        return failed

    def _start(self, config: BaseModel, place: TrialPlace) -> CommandLane:
        plan, files, reports = self._plan, place.folder / FILES, reports_file(place)
        with writing(files):
            files.mkdir(parents=True, exist_ok=True)
            stop_file(reports).unlink(missing_ok=True)
            reports.write_bytes(b"")  # exists for every attempt, also if the script reports in another way
        values, words, env = self._filled(config, place)
        lane = CommandLane(config, place, RungCounter(plan, place.rung), started_at=time.monotonic())
        lane.readers.append(FileReader(reports, "step", lane.counter.add))
        on_line = None
        if plan.metric is not None and plan.metric.file is not None:
            path = files / plan.metric.file
            lane.readers.append(FileReader(path, plan.metric.step, lane.counter.add, from_end=place.attempt > 1))
        elif plan.metric is not None:
            on_line = PatternReader(plan, self._notify(lane.counter)).read
        set_aside_folder(place.folder / OUTPUT)
        try:
            lane.process = CommandProcess(words, env, place.folder / OUTPUT, on_line, self._changed, plan.memory_gb)
        except ValueError as error:  # a null character in a value
            raise ValueError(f"the command cannot be started with {values}: {error}") from None
        return lane

    def _notify(self, counter: RungCounter) -> Callable[[float | None, Any], None]:
        def add(step: float | None, metrics: Any) -> None:
            if counter.add(step, metrics):
                self._changed.set()

        return add

    def _filled(self, config: BaseModel, place: TrialPlace) -> tuple[dict[str, str], list[str], dict[str, str]]:
        """Return the values, the words of the command and its variables, and write the files of the parameters.

        Raises:
            Unwritable: a file cannot be written.
        """
        parameters, folder = flat(config), place.folder.absolute()
        tree = config.model_dump(mode="json")
        write_file(folder / "params.yaml", dump_yaml(tree))
        write_file(folder / "params.json", json.dumps(tree, indent=1) + "\n")
        names = {
            "study": place.study,
            "trial": str(place.number),
            "attempt": str(place.attempt),
            DIR: str(folder / FILES),
            CONFIG: str(folder / "params.yaml"),
            JSON: str(folder / "params.json"),
        }
        values = {SEED: "0"} | {path: value_text(value) for path, value in parameters.items()} | names
        flagged = {path: value for path, value in parameters.items() if path != SEED or self._plan.flags_have_seed}
        flags = [f"--{path}={value_text(value)}" for path, value in flagged.items()]
        env = {name: filled(text, {**values, "flags": " ".join(flags)}) for name, text in self._plan.env.items()}
        env |= {f"HPO_{name.upper()}": values[name] for name in ("study", "trial", "attempt", DIR, SEED, CONFIG)}
        env["HPO_REPORTS"] = str(reports_file(place).absolute())
        return values, filled_words(self._plan.command, values, flags), env

    def _wait_for_reports(self) -> dict[int, Any]:
        """Return the next rung, or the failure, of each lane that has one. Waits for at most TICK_S."""
        deadline = time.monotonic() + TICK_S
        while not self._stopping():
            self._changed.clear()
            found = {lane: report for lane, run in self._lanes.items() if (report := run.next_report())}
            for lane in [lane for lane, report in found.items() if isinstance(report, Exception)]:
                self._drop(lane)
            if found or time.monotonic() >= deadline:
                return found
            self._changed.wait(POLL_S)
        return {}

    def _drop(self, lane: int) -> CommandLane | None:
        self._configs.pop(lane, None)
        return self._lanes.pop(lane, None)

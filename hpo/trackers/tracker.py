"""What each tracker does with the runs of a study."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from hpo.runs.run_dir import write_file
from hpo.trackers.runs import TrackedRun


class Tracker(Protocol):
    """Writes runs with the client of one program.

    Every method may raise an error of the client, or never return.
    """

    place: str
    """Where the runs are, for messages."""

    def ended(self) -> set[int]:
        """Return the trials that were written to their end before."""

    def write(self, run: TrackedRun) -> None:
        """Write what is new of a run. After an error, another call continues without writing a point twice."""

    def close(self) -> None:
        """Write what is buffered, and leave the runs that have not ended to the next launch."""


class EndedRuns:
    """A file with the trials that a tracker of this machine has written to their end."""

    def __init__(self, path: Path, target: str = "") -> None:
        """Read the file. target: where the runs are; another target has a list of its own."""
        self._path, self._target = path, target
        self._lists: dict[str, list[int]] = {}
        with suppress(OSError, ValueError):
            stored = json.loads(path.read_text("utf-8"))
            self._lists = stored if isinstance(stored, dict) else {}
        self.numbers = {number for number in self._lists.get(target, []) if isinstance(number, int)}

    def add(self, number: int) -> None:
        """Store that a trial is written to its end.

        Raises:
            Unwritable: the file cannot be written.
        """
        self.numbers.add(number)
        write_file(self._path, json.dumps({**self._lists, self._target: sorted(self.numbers)}))

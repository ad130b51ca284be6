"""One process of a command, and where its reports come from."""

import time
from dataclasses import dataclass, field

from pydantic import BaseModel

from hpo.runs.command_files import TrialPlace
from hpo.runs.command_process import CommandProcess
from hpo.runs.command_reports import FileReader, Row, RungCounter

COOPERATIVE = "cooperative"  # key of the line with which a script says that it calls `should_stop`


@dataclass
class CommandLane:
    """A process, which starts with the first iteration.

    stopped: the worker has ended the process before its end.
    """

    config: BaseModel
    place: TrialPlace
    counter: RungCounter
    process: CommandProcess | None = None
    readers: list[FileReader] = field(default_factory=list)
    started_at: float = 0.0
    stopped: bool = False

    @property
    def cooperates(self) -> bool:
        """Whether the script has said that it calls `should_stop`."""
        return COOPERATIVE in self.readers[0].marks

    def read(self) -> None:
        """Read what the script has reported in files since the last call."""
        for reader in self.readers:
            reader.read()

    def read_to_end(self) -> None:
        """Read all that the script has reported in files. Its process has ended."""
        for reader in self.readers:
            reader.end()

    def next_row(self) -> Row | None:
        """Return the metrics of the next rung, None if it is not reached."""
        row = self.counter.pop()
        if row is None:
            return None
        seconds = self.place.seconds + time.monotonic() - self.started_at
        return {"rung": row["rung"], **row, "seconds": round(seconds, 3)}

    def next_report(self) -> Row | Exception | None:
        """Return the metrics of the next rung, the failure of an ended process without one, or None."""
        assert self.process is not None
        ended = self.process.ended  # before the files are read, so that nothing is missed
        self.read()
        row = self.next_row()
        if row is None and ended:
            self.read_to_end()
            if self.process.status == 0:
                self.counter.end()
            row = self.next_row()
        if row is not None:
            return row
        return self.process.failure(self.counter.expected()) if ended else None

    def terminate(self) -> None:
        """Send SIGTERM; the process gets SIGKILL after the grace period."""
        if self.process is not None and not self.process.ended:
            self.stopped = True
            self.process.terminate()

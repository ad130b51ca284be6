"""`hpo track`: copy the trials of a study to MLflow, W&B or TensorBoard."""

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpo.analysis.snapshot import read_snapshot
from hpo.console import say
from hpo.errors import WorkFailed
from hpo.runs.run_dir import claim_folder
from hpo.storage.engine import open_readonly
from hpo.storage.studies import resolve_study_name
from hpo.storage.url import normalise_url
from hpo.trackers.copier import StudyCopier
from hpo.trackers.names import check_installed, chosen_trackers, wait_seconds
from hpo.trackers.process import PIPE, tracking

HANGS_S = 60.0  # seconds without an answer of the client after which the user sees a message


def track_study(storage: str, study: str | None, tracker: str, out: Path, follow: bool) -> int:
    """Copy what a tracker does not have yet; return the exit status.

    study: None for the only study of the storage. follow: whether to continue until the study has ended.

    Raises:
        Problem: the package of the tracker is missing, or there is no such study.
        StorageError: the storage is unreachable at the start.
        WorkFailed: the tracker did not take everything.
    """
    check_installed([tracker], "track")
    is_launched = PIPE in os.environ
    note = _note_writer() if is_launched else lambda text: say(f"{tracker}: {text}")
    finish = threading.Event()
    if not follow:
        finish.set()
    with open_readonly(storage) as reader:
        copier = StudyCopier(reader, resolve_study_name(reader, study), tracker, out, note)
        if is_launched:
            os.nice(10)  # training comes first
            threading.Thread(target=_watch_launch, args=(copier, finish, note), daemon=True).start()
        try:
            done = copier.follow(finish)
        finally:
            copier.close()
    if not done:
        raise WorkFailed(f"track: {copier.left} trials could not be written to {tracker}; the next call continues")
    return 0


@contextmanager
def tracking_of_worker(storage: str, study: str | None, names: Sequence[str], out: Path) -> Iterator[None]:
    """Copy a study to the trackers of `hpo worker --track` during the block.

    Raises:
        Problem: a package is missing, or there is no such study.
        StorageError: the storage is unreachable.
    """
    chosen = chosen_trackers(names, (), "")
    if not chosen:
        yield
        return
    with open_readonly(storage) as reader:
        snapshot = read_snapshot(reader, study)
    folder = claim_folder(out, snapshot.first_name, snapshot.uid)
    with tracking(chosen, normalise_url(storage), snapshot.name, out, folder):
        yield


def _watch_launch(copier: StudyCopier, finish: threading.Event, note: Callable[[str], None]) -> None:
    """Wait until the launch ends, even if it was killed, and end this process if its client then hangs.

    Until then, say once for each hanging call that the client does not answer.
    """
    reported: float | None = None
    while not (select.select([0], [], [], 1.0)[0] and not os.read(0, 1)):
        since = copier.busy_since
        if since is not None and since != reported and time.monotonic() - since > HANGS_S:
            note(f"no answer for {HANGS_S:.0f} s; training continues")
            reported = since
    finish.set()
    time.sleep(wait_seconds())
    os._exit(1)


def _note_writer() -> Callable[[str], None]:
    """Return a function that sends a message to the launch. From then on, what clients print goes to the log."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    sys.stdout.flush()
    os.dup2(2, 1)

    def write(text: str) -> None:
        print(text.replace("\n", " "), file=pipe, flush=True)

    return write

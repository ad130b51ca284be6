"""The checks of `hpo doctor` on the files of studies."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hpo.analysis.marks import paused_lines, paused_trials
from hpo.analysis.snapshot import Snapshot
from hpo.runs import checkpoints
from hpo.runs.run_dir import study_folder, trial_folder
from hpo.storage.trials import State, Trial


class CheckResult(NamedTuple):
    """The result of one check. state: ok, warning, error or fixed; `repair` does what `remedy` says."""

    check: str
    state: str
    message: str
    remedy: str = ""
    repair: Callable[[], object] | None = None


def check_run_folder(snapshot: Snapshot, out: Path) -> CheckResult:
    """Check whether the folder of runs holds the files of trials of other machines."""
    name, machine = snapshot.name, socket.gethostname()
    folder = study_folder(out, snapshot.first_name, snapshot.uid)
    others = [t for t in snapshot.trials if str(t.user_attrs.get("worker", machine)).partition(":")[0] != machine]
    if not others:
        return CheckResult("runs", "ok", f"{name}: no other machine has run trials of this study")
    n_present = sum((trial_folder(folder, t.number) / "config.yaml").is_file() for t in others)
    message = f"{name}: {n_present} of {len(others)} trials of other machines have their files in {out}"
    if n_present == len(others):
        return CheckResult("runs", "ok", message)
    remedy = "share one --out folder between all machines; otherwise trials interrupted elsewhere start again here"
    return CheckResult("runs", "warning", message, remedy)


def check_checkpoints(snapshot: Snapshot, out: Path) -> CheckResult:
    """Find the checkpoints that no trial will use again: those of ended trials that are not among the best."""
    name = snapshot.name
    ranked = sorted((t for t in snapshot.own if t.state == State.COMPLETE), key=snapshot.loss)
    best = {trial.number for trial in ranked[: int(snapshot.spec.get("keep_best", 3))]}
    folder = study_folder(out, snapshot.first_name, snapshot.uid)
    ended = [trial_folder(folder, t.number) for t in snapshot.own if _has_ended(t) and t.number not in best]
    leftover = [folder for folder in ended if checkpoints.resumable_checkpoints(folder)]
    if not leftover:
        return CheckResult("checkpoints", "ok", f"{name}: no checkpoint is left over")
    size = sum(file.stat().st_size for folder in leftover for file in folder.glob("**/state.safetensors"))
    message = f"{name}: {len(leftover)} ended trials left checkpoints of {size / 1e6:.1f} MB"

    def remove() -> None:
        for folder in leftover:
            checkpoints.remove_checkpoints(folder, all_of_them=True)

    return CheckResult("checkpoints", "warning", message, "hpo doctor --fix removes them", remove)


def check_paused(snapshot: Snapshot, out: Path) -> Iterator[CheckResult]:
    """Say which trials are paused, and whether they can continue from their checkpoints here."""
    paused = paused_trials(snapshot)
    if not paused:
        return
    folder = study_folder(out, snapshot.first_name, snapshot.uid)
    lost = [t.number for t in paused if not checkpoints.resumable_checkpoints(trial_folder(folder, t.number))]
    message = f"{snapshot.name}: {'; '.join(paused_lines(snapshot))}"
    if not lost:
        yield CheckResult("paused", "ok", message)
        return
    numbers = ", ".join(map(str, lost))
    message += f"; without a checkpoint in {out}: {numbers}"
    yield CheckResult("paused", "warning", message, "share one --out folder; otherwise they start again if promoted")


def _has_ended(trial: Trial) -> bool:
    return trial.state in (State.COMPLETE, State.PRUNED, State.FAIL)

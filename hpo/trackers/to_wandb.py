"""Write runs to Weights & Biases, or into the folders of its offline mode, which `wandb sync` uploads later."""

import os
import shutil
from pathlib import Path
from typing import Any

import wandb

from hpo.storage.trials import State
from hpo.trackers.runs import TrackedRun
from hpo.trackers.tracker import EndedRuns, Tracker

PROJECT = "hpo"  # if $WANDB_PROJECT is not set


class WandbTracker(Tracker):
    """Writes the trials of a study as the runs of a group, which has the name of the study.

    Online, a run continues after the last step that the server has. Offline, a process that starts writes an unfinished
    trial anew, and removes the folder that the earlier one has left.
    """

    def __init__(self, folder: Path) -> None:
        """folder: run folder of the study."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)  # wandb would use the folder of temporary files instead
        self._settings = wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True
        )
        offline = os.environ.get("WANDB_MODE", "online") != "online"
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        names = ("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_MODE")
        target = "/".join([*(os.environ.get(name, "") for name in names), project])
        self._project = project
        self._ended = EndedRuns(folder / "wandb" / "ended.json", target)
        self._runs: dict[int, Any] = {}
        self._steps: dict[int, int] = {}
        self.place = f"{folder / 'wandb'}; to upload it: wandb sync" if offline else f"project {project}"

    def ended(self) -> set[int]:
        """Return the trials that this machine has written to their end."""
        return self._ended.numbers

    def write(self, run: TrackedRun) -> None:
        """Write what is new of a run."""
        if run.number not in self._runs:
            self._open(run)
        opened = self._runs[run.number]
        for step, metrics in run.points_after(self._steps[run.number]):
            at = run.seconds(step)
            if metrics:  # those of a diverged run are not finite
                opened.log({**metrics, **({} if at is None else {"_timestamp": at})}, step=step)
            self._steps[run.number] = step
        opened.summary["status"] = run.status
        if run.has_ended:
            opened.summary.update(dict(run.result))
            opened.tags = (*(opened.tags or ()), run.status)
            _finish(opened, exit_code=1 if run.state is State.FAIL else 0)
            del self._runs[run.number]
            self._ended.add(run.number)

    def _open(self, run: TrackedRun) -> None:
        """Start or resume the run of a trial."""
        kind = run.tags["kind"]
        opened = wandb.init(
            project=self._project,
            group=run.study,
            id=run.key,
            name=run.name,
            resume="allow",
            job_type=kind,
            tags=[kind],
            config={**run.params, "hpo": dict(run.tags)},
            dir=self._folder,
            reinit="create_new",
            settings=self._settings,
        )
        # A server that has the steps up to 300 starts with 301. A new run starts with 0.
        self._runs[run.number], self._steps[run.number] = opened, opened.starting_step - 1

    def close(self) -> None:
        """Mark the runs that have not ended as preempted. The next launch resumes them."""
        for opened in self._runs.values():
            opened.mark_preempting()
            _finish(opened, exit_code=1)


def _finish(opened: Any, exit_code: int) -> None:
    """End a run, and remove the offline folders in which earlier processes have written a part of it."""
    opened.finish(exit_code=exit_code)
    if opened.offline:
        current = Path(opened.settings.sync_dir)
        for folder in current.parent.glob("offline-run-*"):
            if folder.name != current.name and (folder / f"run-{opened.id}.wandb").exists():
                shutil.rmtree(folder, ignore_errors=True)

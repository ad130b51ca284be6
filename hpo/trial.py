"""The trial of the process that imports this module: for training scripts that are the `command` of a study.

    import hpo

    trial = hpo.current_trial()
    lr = trial.params.get("lr", 3e-4)
    ...
    trial.report(step, val_loss=loss)
    if trial.should_stop():
        break

This module imports the standard library only. Outside of a search, `report` does nothing, `should_stop` returns false
and `params` is empty. Worker and script share a file, to which the script appends one JSON object for each report.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CurrentTrial:
    """The trial that this process trains, or none.

    study: name of the study, "" outside of a search. number: of the trial, None outside of a search.
    attempt: 1 for the first attempt at the trial. seed: value of {seed}.
    dir: folder for the files of this trial; the current folder outside of a search.
    """

    study: str
    number: int | None
    attempt: int
    seed: int
    dir: Path

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, nested at the dots of their names; {} outside of a search."""
        path = os.environ.get("HPO_CONFIG")
        if self.number is None or path is None:
            return {}
        return dict(json.loads(Path(path).with_suffix(".json").read_text("utf-8")))

    @property
    def checkpoint(self) -> Path:
        """The file or folder from which the script resumes. Exists only if an earlier attempt has saved it."""
        return self.dir / "checkpoint"

    def report(self, step: float, metrics: Mapping[str, Any] | None = None, **named: Any) -> None:
        """Report metrics at a step. Values are numbers, or what `float` accepts, such as a tensor of one element.

        metrics: for names that are no Python identifiers, such as eval/loss.
        With several processes, as under torchrun, only the report of rank 0 counts.
        """
        if self.number is None:
            return
        values = {str(name): float(value) for name, value in {**(metrics or {}), **named}.items()}
        self._append({**values, "step": float(step)})

    def should_stop(self) -> bool:
        """Return whether hpo has ended this trial, because its values are poor or a stop was requested.

        A script that never calls this method receives SIGTERM instead. One that calls it has 10 s to end by itself.
        """
        path = os.environ.get("HPO_REPORTS")
        if self.number is None or path is None:
            return False
        if self.number not in _cooperating:
            _cooperating.add(self.number)
            self._append({"cooperative": True})
        return Path(path).with_suffix(".stop").exists()

    def _append(self, row: Mapping[str, Any]) -> None:
        path = os.environ.get("HPO_REPORTS")
        if self.number is None or path is None or os.environ.get("RANK", "0") != "0":
            return
        line = json.dumps(row) + "\n"
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, line.encode())  # one call, so that the lines of several processes do not mix
        finally:
            os.close(file)


_cooperating: set[int] = set()  # numbers of the trials in which this process has called `should_stop`


def current_trial() -> CurrentTrial:
    """Return the trial that this process trains. Outside of a search, its methods do nothing."""
    number = os.environ.get("HPO_TRIAL")
    if number is None or "HPO_REPORTS" not in os.environ:
        return CurrentTrial("", None, 1, 0, Path())
    get = os.environ.get
    folder = Path(get("HPO_DIR", "."))
    return CurrentTrial(
        get("HPO_STUDY", ""), int(number), int(get("HPO_ATTEMPT", "1")), int(get("HPO_SEED", "0")), folder
    )

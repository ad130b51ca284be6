"""What a tracker shows of a trial."""

from pathlib import Path

import pytest

from hpo.analysis.snapshot import read_snapshot
from hpo.storage.engine import open_readonly
from hpo.trackers.runs import tracked_run
from tests.support.command import hpo
from tests.support.planted import planted_study

pytestmark = pytest.mark.usefixtures("here")


def test_run_has_the_curve_of_the_storage_with_the_metrics_of_the_file_and_says_what_the_file_lacks(here: Path) -> None:
    planted_study(here, baseline=[{}], budget={"trials": 2})
    hpo("launch", "--study", "planted", cwd=here)
    folder = here / "runs/planted"
    with open_readonly("sqlite:///runs/hpo.db") as store:
        snapshot = read_snapshot(store, "planted")
        baseline, searched = snapshot.trials
        run, _ = tracked_run(snapshot, baseline, folder)
        assert run.params == {"x": 0.5}, "a baseline has the values of the base"
        assert {step: row["val_loss"] for step, row in run.curve.items()} == {1: 2.25, 2: 2.0, 3: 1.75, 4: 1.5}
        assert (run.name, run.status, run.tags["kind"], run.tags["suggested_by"]) == (
            *("planted-0000", "complete", "baseline", "baseline"),
        )
        assert tracked_run(snapshot, searched, folder)[0].params == searched.params
        log = folder / "trials/0000/metrics.jsonl"
        lines = log.read_text().splitlines()
        log.write_text("".join(f'{line[:-1]}, "other": 7}}\n' for line in lines[:3]))
        run, is_complete = tracked_run(snapshot, baseline, folder)
        assert not is_complete, "a worker reports a rung before it writes the file"
        assert [(step, row.get("other")) for step, row in run.curve.items()] == [(1, 7), (2, 7), (3, 7), (4, None)]

"""Run studies to their end in this process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.queue.registry import register_study
from hpo.storage.store import Store
from hpo.study.load import load_study
from hpo.study.spec import Study
from hpo.worker.worker import Worker
from tests.support.planted import planted_study as planted


def run_study(store: Store, study: Study) -> Snapshot:
    """Run a study with one worker; return its snapshot."""
    stored = register_study(store, study, None, {})
    assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
    return read_snapshot(store, study.name)


def run_search(store: Store, folder: Path, base: Mapping[str, Any], **keys: Any) -> Snapshot:
    """Search planted curves, by default with a noise of 0.05."""
    path = planted(folder, base={"noise": 0.05, **base}, **{"pruner": {"name": "none"}, **keys})
    return run_study(store, load_study(str(path)))

"""hpo worker: join a study that is there, from any machine that reaches its storage."""

import json
import os
from pathlib import Path
from typing import Any

from hpo import cores
from hpo.data import Corpora
from hpo.group import EVENTS
from hpo.live import line
from hpo.patience import PATIENCE
from hpo.register import check_data, load
from hpo.storage import connect


def join(storage: str, name: str | None, pack: int, out: Path) -> int:
    """Work on a study until its budget is spent; return the exit status.

    Raises:
        Problem: there is no such study, or the data here are not its own.
    """
    # A worker by itself has the whole machine; a launcher divides it up beforehand.
    cores.settle(cores.available())
    from hpo.worker import Worker

    with connect(storage, patience=PATIENCE) as store:
        at = load(store, name)
        check_data(at.optuna, Corpora().hash(at.study.base))
        rungs = at.study.rungs

        def tell(event: dict[str, Any]) -> None:
            text = json.dumps(event) if os.environ.get(EVENTS) == "json" else line(event, rungs)
            print(text, flush=True)

        launched = os.environ.get(EVENTS) == "json"
        return Worker(at, out.absolute(), pack, tell, parent=os.getppid() if launched else None).work()

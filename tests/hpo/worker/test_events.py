"""Events of a worker and what training code prints do not mix."""

from pathlib import Path

import pytest

from tests.support.command import hpo
from tests.support.planted import planted_study

pytestmark = pytest.mark.usefixtures("here")

PRINTING = """
import subprocess

print('{"event": "complete", "trial": 7, "rung": 4, "value": -1.0}')

def printing(config):
    for rung, value in train(config):
        print(f"rung {rung} of {config.x}")
        subprocess.run(["echo", "from a child"], check=True)
        yield rung, value
"""


def test_what_training_code_prints_is_in_the_log_of_its_worker_and_is_no_event(here: Path) -> None:
    path = planted_study(here, train="curves:printing", budget={"trials": 2}, pruner={"name": "none"})
    (here / "curves.py").write_text((here / "curves.py").read_text() + PRINTING)
    done = hpo("launch", "--study", str(path), "--plain", cwd=here)
    log = (here / "runs/planted/worker-1.log").read_text()
    assert log.count("rung 4 of ") == 2
    assert log.count("from a child") == 8
    assert '"trial": 7' in log
    assert "trial 7" not in done.stdout + done.stderr

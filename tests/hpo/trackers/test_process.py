"""A tracker runs beside the training: whatever its client does, the trials are the same and the launch ends in time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpo.analysis.snapshot import read_snapshot
from hpo.storage.engine import open_readonly
from tests.support.command import environment, hpo, trivial, until

pytestmark = pytest.mark.usefixtures("here")

# A client in place of the real one, because real ones do not fail on request. tests/integrations tests the real ones.
CLIENT = """
import os, signal, time

fault = os.environ["FAULT"]
print("a client may print anything")
open(f"client-{os.getpid()}", "w").close()
if fault == "import":
    raise ImportError("broken package")


class Settings:
    def __init__(self, **_):
        pass


def init(**_):
    if fault == "raise":
        raise ConnectionError("no server")
    if fault == "exit":
        os._exit(3)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1e6)
"""


# The training waits until the client has started, so that the client fails during the training.
TRAINING = """
import glob
import os
import time

from pydantic import BaseModel


class Config(BaseModel):
    lr: float = 0.1


def train(config):
    while not glob.glob("client-*"):
        time.sleep(0.05)
    if os.environ["FAULT"] == "exit" and not os.path.exists("waited"):
        open("waited", "w").close()
        time.sleep(3)  # until the launch has noticed that the process has ended
    for rung in 1, 2, 3:
        time.sleep(0.1)
        yield rung, (config.lr - 0.3) ** 2 + 1 / rung
"""


@pytest.fixture
def study(here: Path) -> Path:
    """A folder with a study and with a client of W&B that fails."""
    trivial(here)
    (here / "trivial.py").write_text(TRAINING)
    (here / "wandb.py").write_text(CLIENT)
    return here


def clients(folder: Path) -> list[int]:
    """Return the processes of the client that are left."""
    ids = [int(path.name.partition("-")[2]) for path in folder.glob("client-*")]
    return [pid for pid in ids if Path(f"/proc/{pid}").exists()]


NOTES = {
    "hang": "waiting at most 0 s for the last values to reach wandb",
    "stop": "waiting at most 0 s for the last values to reach wandb",
    "raise": "note: wandb: ConnectionError: no server (wandb.py line ",
    "import": "note: wandb: ImportError: broken package (wandb.py line ",
    "exit": "note: wandb: ended with status 3; it is restarted in 10 s (see ",
}


@pytest.mark.parametrize("fault", NOTES)
def test_tracker_that_fails_costs_the_training_nothing(study: Path, fault: str) -> None:
    started_at = time.monotonic()
    done = hpo("launch", "--study", "trivial", "--track", "wandb", cwd=study, FAULT=fault, HPO_TRACK_WAIT="0.2")
    with open_readonly("sqlite:///runs/hpo.db") as store:
        trials = read_snapshot(store, "trivial").trials
        assert [(str(trial.state), len(trial.intermediate_values)) for trial in trials] == [("complete", 3)] * 4
    assert NOTES[fault] in done.stderr
    assert (
        "note: wandb does not have all values of trivial; `hpo track wandb --study trivial` writes them" in done.stderr
    )
    assert "a client may print anything" not in done.stdout + done.stderr
    assert until(lambda: not clients(study), 10)
    assert time.monotonic() - started_at < 60


def test_tracker_that_hangs_ends_with_a_launch_that_is_killed(study: Path) -> None:
    launch = subprocess.Popen(
        [sys.executable, "-m", "hpo", "launch", "--study", "trivial", "--track", "wandb"],
        env=environment(FAULT="hang", HPO_TRACK_WAIT="0.5"),
    )
    assert until(lambda: clients(study), 60)
    os.kill(launch.pid, signal.SIGKILL)
    launch.wait()
    assert until(lambda: not clients(study), 30)

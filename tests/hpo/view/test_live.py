"""The live view shows a study, its running trials and the last events in any width and height."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from hpo.analysis.snapshot import read_snapshot
from hpo.queue.registry import register_study
from hpo.storage.store import open_store
from hpo.study.load import load_study
from hpo.view.live import LiveView
from hpo.worker.worker import Worker
from tests.support.command import environment
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")

SPACE = {"x": {"low": 0.0, "high": 1.0}, "noise": {"low": 0.0, "high": 0.1}, "pause": {"low": 0.0, "high": 0.001}}


@pytest.fixture
def view(here: Path) -> LiveView:
    """The view of a study of 8 trials, of which 3 have ended and trial 3 is at rung 2 of 4."""
    path = planted(here, budget={"trials": 8}, space=SPACE, pruner={"name": "none"}, targets={"good": 1.0})
    with open_store("runs/hpo.db", create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        Worker(stored, Path("runs"), 1, lambda event: None).work(3)
        claim = stored.slots.claim("machine:1:a", 60)
        assert claim is not None
        trial = stored.optuna.ask()
        trial.set_user_attr("slot", claim.slot)
        trial.set_user_attr("kind", "search")
        trial.suggest_float("x", 0.0, 1.0)
        trial.report(2.0, 1)
        trial.report(1.9, 2)
        view = LiveView(read_snapshot(store, "planted"), workers=2)
        view.show({"event": "start", "worker": 1, "trial": 3, "kind": "search", "attempt": 1})
    return view


def drawn(view: LiveView, width: int = 120, height: int = 40, unicode: bool = True) -> list[str]:
    return [line.plain for line in view.lines(width, height, unicode)]


def row_of(view: LiveView, trial: str) -> list[str]:
    """Return the cells of the row of a trial, [] if it has none."""
    rows = [line.split() for line in drawn(view) if line.split()[:1] == [trial]]
    return next((row for row in rows if row[1][0] in "█░"), [])


def test_view_has_a_bar_for_the_study_and_one_for_each_trial(view: LiveView) -> None:
    study, *_ = [line for line in drawn(view) if "3/8 trials" in line]
    assert study.count("█") == 26, "of 60: 3 trials and half of the fourth, of 8"
    assert " 44% " in study
    _, bar, rung, *_ = row_of(view, "3")
    assert bar.count("█") == 8, "of 16, at rung 2 of 4"
    assert rung == "2/4"


def test_view_shows_curves_against_the_best_at_the_same_rung(view: LiveView) -> None:
    best = view.snapshot.best()
    assert best is not None
    row = row_of(view, "3")
    assert row[3] == "1.9000"
    assert row[4] == f"{1.9 - best.intermediate_values[2]:+.4f}"
    curve = next(line for line in drawn(view) if line.startswith("best ") and "4/4" in line).split()[-4]
    assert len(set(curve)) == 4
    assert list(curve) == sorted(curve, reverse=True), "a falling loss"
    view.show({"event": "rung", "worker": 1, "trial": 3, "rung": 3, "value": 1.2345, "tokens_per_second": 4321.0})
    row = row_of(view, "3")
    assert row[2:4] == ["3/4", "1.2345"], "events are shown before the next snapshot"
    assert any("4,321 tokens/s" in line for line in drawn(view))
    view.show({"event": "pruned", "worker": 1, "trial": 3, "rung": 3, "value": 1.2345})
    assert not row_of(view, "3")
    assert drawn(view)[-1].endswith("trial 3: pruned at rung 3/4, 1.2345")


@pytest.mark.parametrize("width", [120, 80, 60])
def test_view_folds_to_the_terminal(view: LiveView, width: int) -> None:
    for height in (40, 24, 12):
        lines = drawn(view, width, height)
        assert len(lines) <= height
        assert max(map(cell_len, lines)) <= width
        assert any("3/8 trials" in line for line in lines)
        assert any(line.split()[:1] == ["3"] and "2/4" in line for line in lines), "the running trial"
    text = "\n".join(drawn(view, width))
    assert "elapsed" in text
    assert "target good" in text.replace("\n  ", " ")
    x = view.running[3].params["x"]
    assert x in text, "the parameters that vary"
    assert ("x " + x in text) == (width == 60), "on a line below the trial where there is no room for columns"


def test_view_is_plain_where_the_terminal_has_no_unicode(view: LiveView) -> None:
    assert "\n".join(drawn(view, unicode=False)).isascii()


def in_terminal(*arguments: str, columns: int) -> str:
    """Run a command in a terminal of a width; return what it printed."""
    leader, follower = pty.openpty()
    env = environment(TERM="xterm", COLUMNS=str(columns), LINES="30")
    process = subprocess.Popen([sys.executable, *arguments], stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    output, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([leader], [], [], 0.2)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            output += os.read(leader, 65536)
        except OSError:  # the terminal is closed
            break
    assert process.wait(10) == 0, output
    os.close(leader)
    return output.decode()


def test_status_watch_is_the_same_view_and_loads_neither_torch_nor_optuna(view: LiveView, here: Path) -> None:
    program = (
        "import sys; sys.argv = ['hpo', 'status', '--watch']\n"
        "from hpo.cli.main import app\n"
        "import hpo.view.watch as watch\n"
        "watch.has_ended = lambda snapshot: True\n"
        "app(standalone_mode=False)\n"
        "print(sorted({'torch', 'optuna', 'model', 'numpy'} & {name.split('.')[0] for name in sys.modules}))\n"
    )
    text = in_terminal("-c", program, columns=80)
    assert "█" in text
    assert "best: trial" in text
    assert "trial 2: complete at rung 4/4" in text
    assert text.rstrip().endswith("[]")

"""The end of a run in a pack: what a training function of the user does after its last rung."""

from pathlib import Path

import pytest

from tests.support.command import hpo
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")

ENDINGS = """

def longer(config):
    yield from train(config)
    open("further", "a").write("x")
    yield config.rungs + 1, 0.0


def cleaned(config):
    yield from train(config)
    open("cleaned", "a").write("x")


def broken(config):
    yield from train(config)
    raise SystemExit("after\\nthe end")
"""


def with_ending(here: Path, name: str) -> list[str]:
    """Run two trials of a function that does more after its last rung; return the lines of `hpo status`."""
    path = planted(here, train=f"curves:{name}", budget={"trials": 2}, baseline=[])
    (here / "curves.py").write_text((here / "curves.py").read_text() + ENDINGS)
    hpo("launch", "--study", path.name, cwd=here)
    return hpo("status", cwd=here).stdout.splitlines()


def test_a_run_with_more_rungs_than_its_file_says_is_noted_in_trials_and_status(here: Path) -> None:
    said = "the training function reports rung 5, but `rungs` of the study file is 4"
    assert any(said in line for line in with_ending(here, "longer"))
    for number in ("0", "1"):
        shown = hpo("show", number, "--format", "json", cwd=here).stdout
        assert f'"note": "{said}"' in shown
        assert '"5"' not in shown
    assert (here / "further").read_text() == "x", "a further rung is trained once per worker, not once per trial"


def test_the_code_after_the_last_yield_runs_and_the_result_stays(here: Path) -> None:
    assert not any(line.startswith("events") for line in with_ending(here, "cleaned"))
    assert (here / "cleaned").read_text() == "xx"
    assert "note" not in hpo("show", "0", "--format", "json", cwd=here).stdout


def test_a_failure_after_the_last_yield_is_noted_and_the_trial_is_complete(here: Path) -> None:
    lines = with_ending(here, "broken")
    assert any("2 complete" in line for line in lines)
    assert any("the training function failed after its last rung: SystemExit: after" in line for line in lines)
    assert "the end" in (here / "runs" / "planted" / "trials" / "0000" / "stderr.log").read_text()

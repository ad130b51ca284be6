"""Trackers whose packages are missing are refused before anything starts."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from hpo.analysis.snapshot import read_snapshot
from hpo.storage.engine import open_readonly
from tests.support.command import finished_study, hpo, trivial

pytestmark = pytest.mark.usefixtures("here")
MISSING = [name for name in ("mlflow", "wandb", "tensorboard") if find_spec(name) is None]


@pytest.mark.skipif(not MISSING, reason="all trackers are installed")
def test_missing_package_is_refused_before_the_launch_with_the_command_that_installs_it(here: Path) -> None:
    name, path = MISSING[0], trivial(here)
    options = [word for missing in MISSING for word in ("--track", missing)]
    done = hpo("launch", "--study", path.name, *options, cwd=here, status=2)
    assert f"--track: needs the package{'s' * (len(MISSING) > 1)} {', '.join(MISSING)}" in done.stderr
    assert f"`pip install 'hpo[{','.join(MISSING)}]'`" in done.stderr
    path.write_text(f"{path.read_text()}track: {name}\n")
    done = hpo("launch", "--study", path.name, cwd=here, status=2)
    assert f"trivial.yaml: track: needs the package {name}" in done.stderr
    assert not (here / "runs").exists()
    hpo("launch", "--study", path.name, "--track", "none", cwd=here)
    for command in (["worker", "--track", name], ["track", name]):
        assert f"`pip install 'hpo[{name}]'`" in hpo(*command, "--study", "trivial", cwd=here, status=2).stderr


def test_folder_in_which_a_client_stores_runs_is_no_package(here: Path) -> None:
    if "wandb" not in MISSING:
        pytest.skip("wandb is installed")
    (here / "wandb").mkdir()
    done = hpo("launch", "--study", trivial(here).name, "--track", "wandb", cwd=here, status=2)
    assert "--track: needs the package wandb" in done.stderr


def test_wrong_trackers_and_waits_are_refused(here: Path) -> None:
    path = trivial(here)
    (here / "wandb.py").write_text("")
    done = hpo("launch", "--study", path.name, "--track", "none", "--track", "wandb", cwd=here, status=2)
    assert "--track: none must be alone, got none, wandb" in done.stderr
    done = hpo("launch", "--study", path.name, "--track", "wandb", cwd=here, status=2, HPO_TRACK_WAIT="soon")
    assert "HPO_TRACK_WAIT: must be a number of seconds of at least 0, got 'soon'" in done.stderr
    path.write_text(f"{path.read_text()}track: [wandb, mlflw]\n")
    assert "trivial.yaml: track.1: must be" in hpo("check", path.name, cwd=here, status=2).stderr
    done = hpo("worker", "--follow", "--track", "wandb", cwd=here, status=2)
    assert "--track: must be used with --study, because --follow works on every study, got wandb" in done.stderr


def test_trackers_of_a_study_may_change_after_its_start(here: Path) -> None:
    finished_study(here)
    path = here / "trivial.yaml"
    (here / "wandb.py").write_text("raise ImportError('broken')\n")
    path.write_text(f"{path.read_text()}track: wandb\n")
    done = hpo("launch", "--study", path.name, "--trials", "5", cwd=here, HPO_TRACK_WAIT="0")
    assert (
        "note: wandb does not have all values of trivial; `hpo track wandb --study trivial` writes them" in done.stderr
    )
    with open_readonly("sqlite:///runs/hpo.db") as store:
        snapshot = read_snapshot(store, "trivial")
    assert json.loads(json.dumps(snapshot.spec["track"])) == [], "the definition stays as it was stored"
    assert len(snapshot.trials) == 5

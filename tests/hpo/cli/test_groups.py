"""Option groups are declared once, and every command that runs trials takes the same options."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hpo.cli.groups import Display, Placement, RunOptions
from hpo.errors import Problem
from hpo.queue.registry import register_study
from hpo.storage.store import open_store
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from tests.support.command import COMMANDS, hpo
from tests.support.command import run_in_process as run_here
from tests.support.planted import planted_study as planted

RUNNING = ("launch", "confirm", "ablate", "claims")


def declared(command: str) -> dict[str, Any]:
    """Return the run options of a command: spellings, default, bounds and help by name."""
    names = {field.name for group in (RunOptions, Placement, Display) for field in fields(group)}
    return {
        p.name: (p.opts, p.secondary_opts, p.default, p.min, p.max, p.help)
        for p in COMMANDS.commands[command].params  # type: ignore[attr-defined]
        if p.name in names
    }


def test_commands_that_run_trials_take_the_same_run_options() -> None:
    options = {command: declared(command) for command in RUNNING}
    assert list(options["launch"]) == [
        *("storage", "out", "allow_train", "track"),
        *("workers", "gpus", "per_gpu", "pack", "on", "address", "gpus_per_worker", "slurm"),
        *("dry_run", "quiet", "plain", "notify"),
    ]
    for command in RUNNING[1:]:
        assert options[command] == options["launch"]


def test_options_of_a_group_reach_the_launcher_with_their_defaults() -> None:
    run = RunOptions(placement=Placement(workers=3, gpus="0, 1,"), display=Display(quiet=True))
    options = run.launch_options("trivial", ["lr=0.1"], 7, {"trials": 4})
    assert (options.study, options.overrides, options.seed, options.budget) == ("trivial", ["lr=0.1"], 7, {"trials": 4})
    assert (options.workers, options.gpus, options.per_gpu, options.pack) == (3, ["0", "1"], 1, 1)
    assert (options.on, options.address, options.gpus_per_worker, options.out) == ("local", "", 0.0, Path("runs"))
    assert (options.dry_run, options.quiet, options.plain) == (False, True, False)


@pytest.mark.parametrize("command", ["launch", "confirm", "ablate"])
def test_commands_that_run_trials_place_workers_on_ray(command: str, here: Path) -> None:
    with open_store(f"sqlite:///{here}/hpo.db", create=True) as store:
        stored = register_study(
            store, load_study(str(planted(here, budget={"trials": 2}, baseline=[{"x": 0.9}]))), None, {}
        )
        assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
    typed = (command, "--study", "planted", "--storage", "hpo.db")
    for options, message in (
        (["--on", "ray"], "Postgres"),
        (["--address", "head:6379"], "--address: must be .* without --on ray"),
        (["--on", "ray", "--gpus", "0"], "--gpus: must be .* with --on ray"),
    ):
        with pytest.raises(Problem, match=message):
            run_here(*typed, *options, cwd=here)


def test_claims_places_workers_on_ray(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"Postgres"):
        run_here("claims", "S002", "--on", "ray", cwd=tmp_path)
    with pytest.raises(Problem, match=r"--address: must be .* without --on ray"):
        run_here("claims", "S002", "--address", "head:6379", cwd=tmp_path)


def test_old_name_of_verdict_arms_only_works_with_a_note(tmp_path: Path) -> None:
    listed = ("claims", "S002", "--list", "--format", "json")
    new = hpo(*listed, "--verdict-arms-only", cwd=tmp_path)
    old = hpo(*listed, "--weighed", cwd=tmp_path)
    assert old.stdout == new.stdout
    assert new.stderr == ""
    assert old.stderr == "note: --weighed is now --verdict-arms-only; version 0.3.0 removes the old name\n"
    every = json.loads(hpo(*listed, cwd=tmp_path).stdout)
    assert json.loads(new.stdout)[0]["runs"] <= every[0]["runs"]
    shown = hpo("claims", "--help", cwd=tmp_path).stdout
    assert "--verdict-arms-only" in shown
    assert not re.search("weighed", shown)

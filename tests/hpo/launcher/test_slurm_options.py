"""What `--on slurm` refuses before anything runs. tests/integrations/test_slurm.py runs jobs."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from hpo.errors import Problem
from hpo.launcher.slurm_options import check_slurm, flags, parse_slurm_options, short_message, warning_seconds
from tests.support.command import run_in_process
from tests.support.planted import planted_study as planted

POSTGRES = "postgresql://hpo:secret@127.0.0.1:1/hpo"
ON_SLURM = ["--on", "slurm", "--storage", POSTGRES]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--on", "slurm"],
            "--storage: must be Postgres with --on slurm, since the locks of SQLite are unreliable on a disk that",
        ),
        ([*ON_SLURM, "--slurm", "gpu"], "--slurm: must be KEY=VALUE with the long name of an sbatch option, such as"),
        ([*ON_SLURM, "--slurm", "p=gpu"], "--slurm: must be KEY=VALUE with the long name of an sbatch option, such as"),
        ([*ON_SLURM, "--slurm", "time="], "--slurm: must be KEY=VALUE with the long name of an sbatch option, such as"),
        (
            [*ON_SLURM, "--slurm", "--qos=x"],
            "--slurm: must be KEY=VALUE with the long name of an sbatch option, such as",
        ),
        ([*ON_SLURM, "--slurm", "comment=a\nb"], "--slurm comment: must be one line of printable text, got 'a\\nb'"),
        ([*ON_SLURM, "--slurm", "array=0-9"], "--slurm array: must be left out, because --workers sets it, got '0-9'"),
        ([*ON_SLURM, "--slurm", "export=NONE"], "--slurm export: must be left out, because the workers need the env"),
        (
            [*ON_SLURM, "--slurm", "mem=1G", "--slurm", "mem=2G"],
            "--slurm mem: must be given once, got '1G' and '2G'",
        ),
        ([*ON_SLURM, "--slurm", "signal=USR1@9"], "--slurm signal: must be B:USR1@SECONDS, the time before the end of"),
        ([*ON_SLURM, "--gpus", "0"], "--gpus: must be left out with --on slurm; use an option of sbatch, such as --sl"),
        ([*ON_SLURM, "--gpus-per-worker", "1"], "--gpus-per-worker: must be left out without --on ray; use an option"),
        (["--slurm", "time=10"], "--slurm: must be left out without --on slurm"),
        (["--on", "ray", "--slurm", "time=10"], "--slurm: must be left out without --on slurm"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Problem) as refused:
        run_in_process("launch", "--study", str(planted(tmp_path)), *arguments, cwd=tmp_path)
    assert str(refused.value).startswith(message)
    assert "secret" not in str(refused.value)
    assert refused.value.status == 2
    assert not (tmp_path / "runs").exists()


def test_without_submitit_or_slurm_the_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        Problem, match=r"--on slurm: needs submitit, which is not installed; pip install 'hpo\[slurm\]'"
    ):
        check_slurm(POSTGRES, {}, 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(
        Problem, match="--on slurm: needs sbatch, which is not on PATH; run the command on a login node"
    ):
        check_slurm(POSTGRES, {}, 1)


def test_options_reach_sbatch_by_their_long_names() -> None:
    options = parse_slurm_options(["partition=gpu", "cpus_per_task=4", "exclusive=true", "signal=B:USR1@300"])
    assert flags(options) == ["--partition=gpu", "--cpus-per-task=4", "--exclusive", "--signal=B:USR1@300"]
    assert warning_seconds(options) == 285
    assert flags(parse_slurm_options([])) == ["--signal=B:USR1@60"]


def test_messages_of_slurm_are_one_line() -> None:
    said = "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified\n"
    assert short_message(said) == "invalid partition specified: nope; Invalid partition name specified"
    assert short_message("") == "it printed nothing"

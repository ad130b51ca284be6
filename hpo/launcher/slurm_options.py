"""`--on slurm` and `--slurm KEY=VALUE`: what is checked before a study is stored."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from hpo.errors import Problem, WorkFailed
from hpo.launcher.postgres_only import check_postgres, note_local_address

SIGNAL, DEFAULT_SIGNAL = "signal", "B:USR1@60"
# Slurm sends the signal up to a minute late, and the worker needs some seconds to store what it has.
MARGIN_S = 15.0
ANSWER_S = 60.0  # seconds that the controller of the cluster may take to answer

_KEY = re.compile(r"[a-z][a-z0-9_-]+")
_SIGNAL = re.compile(r"B:(?:SIG)?USR1@(\d+)")
# Options of sbatch that hpo sets itself, or that contradict what it does
_RESERVED = {
    "array": "--workers sets it",
    "chdir": "the jobs run in the current folder",
    "error": "the logs are in the folder of the study",
    "export": "the workers need the environment of this command",
    "input": "workers read no input",
    "job-name": "`hpo status` finds the jobs of a study by it",
    "open-mode": "the logs of a requeued job are appended",
    "output": "the logs are in the folder of the study",
    "parsable": "hpo reads what sbatch prints",
    "test-only": "--dry-run checks the options",
    "wait": "hpo waits for the jobs itself",
    "wrap": "the jobs run workers of hpo",
}
_NO_ANSWER = re.compile(r"contact slurm controller|Socket timed out|configuration (source|file)", re.I)


def parse_slurm_options(assignments: Sequence[str]) -> dict[str, str]:
    """Return the options of sbatch by their long name, with the signal that announces the end of a job.

    assignments: as typed. The value `true` stands for an option without a value.

    Raises:
        Problem: an assignment does not have the form KEY=VALUE, or the option cannot be set.
    """
    options: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        key, value = key.strip().replace("_", "-"), value.strip()
        if not equals or not value or not _KEY.fullmatch(key):
            rule = "must be KEY=VALUE with the long name of an sbatch option, such as partition=gpu or exclusive=true"
            raise Problem(f"--slurm: {rule}, got {assignment!r:.80}")
        if not value.isprintable():
            raise Problem(f"--slurm {key}: must be one line of printable text, got {value!r:.80}")
        if key in _RESERVED:
            raise Problem(f"--slurm {key}: must be left out, because {_RESERVED[key]}, got {value!r:.80}")
        if key in options:
            raise Problem(f"--slurm {key}: must be given once, got {options[key]!r:.40} and {value!r:.40}")
        options[key] = value
    options.setdefault(SIGNAL, DEFAULT_SIGNAL)
    if not _SIGNAL.fullmatch(options[SIGNAL]):
        rule = "must be B:USR1@SECONDS, the time before the end of a job at which its worker releases its trials"
        raise Problem(f"--slurm {SIGNAL}: {rule}, got {options[SIGNAL]!r:.80}")
    return options


def warning_seconds(options: Mapping[str, str]) -> float:
    """Return the seconds that a worker has after the signal that announces the end of its job."""
    match = _SIGNAL.fullmatch(options[SIGNAL])
    assert match
    return max(0.0, float(match[1]) - MARGIN_S)


def flags(options: Mapping[str, str]) -> list[str]:
    """Return options as arguments of sbatch."""
    return [f"--{key}" if value == "true" else f"--{key}={value}" for key, value in options.items()]


def check_slurm(storage: str, options: Mapping[str, str], n_workers: int) -> None:
    """Check that jobs with these options can be submitted, and warn if they may not reach the storage.

    Raises:
        Problem: submitit or Slurm is not installed, jobs cannot reach the storage, or sbatch refuses the options.
        WorkFailed: the cluster does not answer.
    """
    check_postgres("slurm", storage)
    if importlib.util.find_spec("submitit") is None:
        raise Problem("--on slurm: needs submitit, which is not installed; pip install 'hpo[slurm]'")
    if shutil.which("sbatch") is None:
        raise Problem("--on slurm: needs sbatch, which is not on PATH; run the command on a login node of the cluster")
    _try_submission(options, n_workers)
    note_local_address(storage, "jobs on other nodes cannot reach it")


def _try_submission(options: Mapping[str, str], n_workers: int) -> None:
    """Have sbatch check the options without a submission.

    Raises:
        Problem: sbatch refuses them.
        WorkFailed: the cluster does not answer.
    """
    command = ["sbatch", "--test-only", f"--array=0-{n_workers - 1}", *flags(options), "--wrap=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        raise WorkFailed(f"--on slurm: the cluster does not answer within {ANSWER_S:.0f} s") from None
    if done.returncode:
        reason = short_message(done.stderr or done.stdout)
        if _NO_ANSWER.search(reason):
            raise WorkFailed(f"--on slurm: the cluster does not answer: {reason}; `sinfo` must show its nodes")
        if "job array" in reason:
            rule = "must be at most MaxArraySize of the cluster, which `scontrol show config` prints"
            raise Problem(f"--workers: {rule}, got {n_workers}")
        raise Problem(f"--slurm: sbatch refuses the jobs: {reason}; `sbatch --help` lists its options")


def short_message(text: str) -> str:
    """Return what a command of Slurm has printed as one line, without the name of the command."""
    lines = [re.sub(r"^(\w+: (error|fatal)|allocation failure|\w+): ", "", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))[:400] or "it printed nothing"

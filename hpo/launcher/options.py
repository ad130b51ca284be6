"""Options of `hpo launch`, and the command that repeats a launch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from hpo.console import command_line, shell_quote
from hpo.errors import Problem
from hpo.runs.resources import AUTO_PACK, pack_text
from hpo.storage.url import has_no_password
from hpo.study.trackers import TrackerName
from hpo.trackers.names import NONE

PLACES = ("local", "ray", "slurm")
# The smallest and the largest value of each number, and its type
LIMITS: Mapping[str, tuple[float, float, type]] = {
    "workers": (0, 1024, int),
    "per_gpu": (1, 64, int),
    "pack": (AUTO_PACK, math.inf, int),
    "gpus_per_worker": (0, math.inf, float),
    "trials": (1, math.inf, int),
    "hours": (0, math.inf, float),
}


@dataclass(frozen=True)
class LaunchOptions:
    """The options of `hpo launch`, with the defaults of its command line.

    budget: limits by name (trials, hours, tokens); None: the study file's. overrides: `--set` as typed.
    on: "local", "ray" or "slurm". address: the head of the Ray cluster. slurm: `--slurm` as typed.
    pack: number of trials that a worker trains side by side, or AUTO_PACK. out: folder of the runs.
    plain: print lines instead of the live view. allow_train: as typed.
    confirm: whether to confirm the best trial of the search afterwards. notify: URL of a webhook, "" for none.
    track: trackers as typed; empty for those of the study.
    """

    study: str
    storage: str
    workers: int = 0
    budget: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    seed: int | None = None
    gpus: Sequence[str] = ()
    per_gpu: int = 1
    on: str = "local"
    address: str = ""
    gpus_per_worker: float = 0.0
    pack: int = 1
    out: Path = Path("runs")
    dry_run: bool = False
    quiet: bool = False
    plain: bool = False
    allow_train: Sequence[str] = ()
    confirm: bool = False
    slurm: Sequence[str] = ()
    track: Sequence[str] = ()
    notify: str = ""  # `resume_command` leaves it out, because such URLs are often secrets

    def __post_init__(self) -> None:
        """Check what the command line checks before, because options may come from Python.

        Raises:
            Problem: a number is outside its limits, or a name or a text is not valid.
        """
        numbers: dict[str, Any] = {"workers": self.workers, "per_gpu": self.per_gpu, "pack": self.pack}
        numbers |= {"gpus_per_worker": self.gpus_per_worker, **self.budget}
        problems = [text for key, value in numbers.items() if (text := _number_problem(key, value))]
        if self.on not in PLACES:
            problems.append(f"--on: must be one of {', '.join(PLACES)}, got {self.on!r:.60}")
        trackers = (*get_args(TrackerName), NONE)
        if unknown := [name for name in self.track if name not in trackers]:
            problems.append(f"--track: must be one of {', '.join(trackers)}, got {unknown[0]!r:.60}")
        texts = {"address": self.address, "notify": self.notify}
        problems += [f"--{key}: must be text, got {v!r:.60}" for key, v in texts.items() if not isinstance(v, str)]
        if problems:
            raise Problem(*problems)


def _number_problem(key: str, value: Any) -> str | None:
    """Return the rule that the number of an option breaks, None for a valid one."""
    low, high, kind = LIMITS.get(key, (0, math.inf, float))
    is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if value is None or (is_number and low <= value <= high):
        return None
    what = "a whole number" if kind is int else "a number"
    limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
    return f"--{key.replace('_', '-')}: must be {what} {limits}, got {value!r:.60}"


def storage_option(options: LaunchOptions) -> str:
    """Return the option --storage of the next command, "" for the default storage. A password is left out."""
    if options.storage == "sqlite:///runs/hpo.db":
        return ""
    return f" --storage {shell_quote(options.storage if has_no_password(options.storage) else '...')}"


def placement_words(options: LaunchOptions) -> list[str]:
    """Return the words of the next command that place its workers as this launch does."""
    words = ["--gpus", ",".join(options.gpus), "--per-gpu", str(options.per_gpu)] if options.gpus else []
    words += ["--on", options.on] if options.on != "local" else []
    words += ["--address", options.address] if options.address else []
    words += ["--gpus-per-worker", f"{options.gpus_per_worker:g}"] if options.gpus_per_worker else []
    return words + [word for option in options.slurm for word in ("--slurm", option)]


def resume_command(options: LaunchOptions) -> str:
    """Return the command that repeats this launch."""
    words = ["hpo", "launch", "--study", options.study]
    words += ["--workers", str(options.workers)] if options.workers else []
    words += [word for key, value in options.budget.items() if value is not None for word in (f"--{key}", str(value))]
    words += [word for override in options.overrides for word in ("--set", override)]
    words += ["--seed", str(options.seed)] if options.seed is not None else []
    words += placement_words(options)
    words += ["--pack", pack_text(options.pack)] if options.pack != 1 else []
    words += [word for address in options.allow_train for word in ("--allow-train", address)]
    words += [word for name in options.track for word in ("--track", name)]
    words += ["--confirm"] if options.confirm else []
    words += ["--out", str(options.out)] if str(options.out) != "runs" else []
    return command_line(*words) + storage_option(options)

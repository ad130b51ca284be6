"""Options of `hpo launch`, and the command that repeats a launch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.console import command_line, shell_quote
from hpo.runs.resources import pack_text
from hpo.storage.url import has_no_password


@dataclass(frozen=True)
class LaunchOptions:
    """The command line of `hpo launch`.

    budget: limits by name (trials, hours, tokens); None: the study file's. overrides: `--set` as typed.
    on: "local" or "ray". address: the head of the Ray cluster. pack: number of trials that a worker trains side by
    side, or AUTO_PACK. out: folder of the runs. plain: print lines instead of the live view. allow_train: as typed.
    confirm: whether to confirm the best trial of the search afterwards. notify: URL of a webhook, "" for none.
    """

    study: str
    storage: str
    workers: int
    budget: Mapping[str, Any]
    overrides: Sequence[str]
    seed: int | None
    gpus: Sequence[str]
    per_gpu: int
    on: str
    address: str
    gpus_per_worker: float
    pack: int
    out: Path
    dry_run: bool
    quiet: bool
    plain: bool
    allow_train: Sequence[str] = ()
    confirm: bool = False
    notify: str = ""  # `resume_command` leaves it out, because such URLs are often secrets


def storage_option(options: LaunchOptions) -> str:
    """Return the option --storage of the next command, "" for the default storage. A password is left out."""
    if options.storage == "sqlite:///runs/hpo.db":
        return ""
    return f" --storage {shell_quote(options.storage if has_no_password(options.storage) else '...')}"


def resume_command(options: LaunchOptions) -> str:
    """Return the command that repeats this launch."""
    words = ["hpo", "launch", "--study", options.study, "--workers", str(options.workers)]
    words += [word for key, value in options.budget.items() if value is not None for word in (f"--{key}", str(value))]
    words += [word for override in options.overrides for word in ("--set", override)]
    words += ["--seed", str(options.seed)] if options.seed is not None else []
    words += ["--gpus", ",".join(options.gpus), "--per-gpu", str(options.per_gpu)] if options.gpus else []
    words += ["--on", options.on] if options.on != "local" else []
    words += ["--address", options.address] if options.address else []
    words += ["--gpus-per-worker", f"{options.gpus_per_worker:g}"] if options.gpus_per_worker else []
    words += ["--pack", pack_text(options.pack)] if options.pack != 1 else []
    words += [word for address in options.allow_train for word in ("--allow-train", address)]
    words += ["--confirm"] if options.confirm else []
    words += ["--out", str(options.out)] if str(options.out) != "runs" else []
    return command_line(*words) + storage_option(options)

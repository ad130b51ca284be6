"""Turn the arguments of `hpo.Study` into the options of the command line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from hpo.config.validation import nearest
from hpo.errors import Problem
from hpo.launcher.options import LaunchOptions
from hpo.runs.resources import AUTO_PACK
from hpo.storage.url import checked_url
from hpo.transfer.rule import Rule

# Options of a launch that are no arguments of `Study.launch`: the study has them, or they have another form there
_NOT_ARGUMENTS = {"study", "storage", "out", "budget", "overrides", "seed", "allow_train", "dry_run", "confirm"}
_LISTS = {field.name for field in fields(LaunchOptions) if field.default == ()}  # one of them may be given alone
ARGUMENTS = [field.name for field in fields(LaunchOptions) if field.name not in _NOT_ARGUMENTS]


def launch_options(study: str, storage: str, out: Path, given: Mapping[str, Any], **more: Any) -> LaunchOptions:
    """Return the options of a launch.

    given: arguments of `Study.launch` by name. more: other fields of `LaunchOptions`.

    Raises:
        Problem: an argument has another name or an invalid value.
    """
    options = dict(given)
    for name in options.keys() - set(ARGUMENTS):
        hint = nearest(name, ARGUMENTS) or f"; the arguments are {', '.join(ARGUMENTS)}"
        raise Problem(f"{name}: no such argument{hint}")
    if options.get("pack") == "auto":
        options["pack"] = AUTO_PACK
    elif options.get("pack") == AUTO_PACK:
        raise Problem(f"pack: must be 'auto' or a whole number of at least 1, got {AUTO_PACK}")
    if isinstance(options.get("track"), str):
        options["track"] = [options["track"]]
    if "gpus" in options:
        options["gpus"] = _names(options["gpus"])
    if isinstance(options.get("slurm"), Mapping):
        options["slurm"] = [f"{key}={'true' if value is True else value}" for key, value in options["slurm"].items()]
    options |= {name: [value] for name, value in options.items() if name in _LISTS and isinstance(value, str)}
    return LaunchOptions(study=study, storage=storage, out=out, **options, **more)


def _names(given: Any) -> list[str]:
    """Return GPUs, given as "0,1", as a number or as a list of numbers, as a list of names."""
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    return [str(part).strip() for part in parts if str(part).strip()]


def override_words(overrides: Mapping[str, Any] | None, name: str = "overrides") -> list[str]:
    """Return fields of a configuration as the command line gives them with --set. name: of the argument in messages.

    Raises:
        Problem: it is no mapping, or YAML cannot represent a value.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise Problem(f"{name}: must be a mapping of fields to values, such as {{'lr': 0.01}}, got {overrides!r:.60}")
    try:
        return [f"{path}={json.dumps(value)}" for path, value in (overrides or {}).items()]
    except TypeError as error:
        raise Problem(f"{name}: must have values of YAML: numbers, text, lists and mappings; {error}") from None


def url_of(storage: str | Path | None) -> str:
    """Return the URL of a storage that is given as a URL, as a file, or not at all.

    Raises:
        Problem: it is no text.
        StorageError: the text cannot be a URL or the name of a file.
    """
    if storage is None or isinstance(storage, str | Path):
        return checked_url(None if storage is None else str(storage))
    raise Problem(f"storage: must be a URL or the path of a file, got {storage!r:.60}")


def check_count(name: str, value: Any) -> None:
    """Check a number of runs, seeds or tokens, which is None where it is not given.

    Raises:
        Problem: it is not a whole number of at least 1.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise Problem(f"{name}: must be a whole number of at least 1, got {value!r:.60}")


def paired_test(name: str | None) -> Literal["t", "wilcoxon"] | None:
    """Return the test of paired differences with this name.

    Raises:
        Problem: there is no such test.
    """
    if name is None or name == "t" or name == "wilcoxon":
        return name  # type: ignore[return-value]
    raise Problem(f"test: must be t or wilcoxon, got {name!r:.60}")


def rule_of(name: str | None) -> Rule | None:
    """Return the rule of transfer with this name.

    Raises:
        Problem: there is no such rule.
    """
    if name is None or name in list(Rule):
        return None if name is None else Rule(name)
    raise Problem(f"rule: must be {', '.join(Rule)}, got {name!r:.60}")

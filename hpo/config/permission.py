"""Which training code may be imported, and which command may run, for a study of the storage.

A study stores the addresses of its training function and of its configuration class, or the words of its command.
Everyone who can write the storage can change them, and importing a module runs its code. Therefore hpo runs code that a
stored study names only if the user has named it: with --allow-train, or in a study file in the current folder or in
./studies.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpo.config.addresses import current_address
from hpo.config.yaml import YamlError, parse_yaml
from hpo.errors import Problem

# The GPT trainer and its configuration, by key of a study file
BUILT_IN = {"train": "model.train.trainer:Trainer", "config": "model.config:TrainConfig"}
# The same keys of a study whose `command` trains. Nothing is imported for it.
COMMAND = {"train": "hpo.runs.command:CommandRuns", "config": "hpo.study.command_config:command_config"}
_ADDRESS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_NAMES_CODE = re.compile(r"^['\"]?(train|config|command)\b", re.M)  # a key at the top of a study file

_permitted: set[str] = set()  # of this process: what its command line and its study files name


def permit(addresses: Iterable[str]) -> None:
    """Allow this process to import the code at these addresses, and to run these commands, for stored studies."""
    _permitted.update(map(current_address, addresses))


def permit_options(addresses: Iterable[str]) -> None:
    """Allow the addresses and the commands of --allow-train.

    Raises:
        Problem: an address does not have the form module:name.
    """
    addresses = list(addresses)
    for address in addresses:
        if not _ADDRESS.fullmatch(address) and not _is_command(address):
            rule = "must be module:name, such as waves:train, or the text of a command"
            raise Problem(f"--allow-train: {rule}, got {address!r:.80}")
    permit(address if _ADDRESS.fullmatch(address) else shlex.join(shlex.split(address)) for address in addresses)


def _is_command(text: str) -> bool:
    """Return whether a text is a command of several words, or a path. One word may be a misspelled address."""
    try:
        words = shlex.split(text)
    except ValueError:
        return False
    return len(words) > 1 or (len(words) == 1 and "/" in words[0])


def command_text(command: Sequence[str], env: Mapping[str, str]) -> str:
    """Return a command with its additional variables as a user writes both in a shell."""
    return shlex.join([*(f"{name}={value}" for name, value in env.items()), *command])


def check_permission(source: str, spec: Mapping[str, Any], read_files: bool = True) -> None:
    """Check that a study of the storage names only code that the user has named.

    source: the study in messages, such as "study waves". read_files: whether a study file in the current folder or in
        ./studies is a permission. Otherwise only --allow-train is.

    Raises:
        Problem: the study names other code, or an address does not have the form module:name.
    """
    addresses = named_code(spec)
    for key, address in addresses.items():
        if key != "command" and not _ADDRESS.fullmatch(address):
            raise Problem(f"{source}: {key}: must be module:name, the storage holds {address!r:.80}")
    if read_files and _unpermitted(addresses):
        permit(address for folder in (Path(), Path("studies")) for address in _named_in_files(folder))
    foreign = _unpermitted(addresses)
    if not foreign:
        return
    # one option for each module
    by_module = {address if " " in address else address.partition(":")[0]: address for address in reversed(foreign)}
    options = shlex.join(word for address in reversed(by_module.values()) for word in ("--allow-train", address))
    unnamed = "no study file in this folder and no option names it" if read_files else "no option names it"
    code, verb = ("command", "run") if "command" in addresses else ("training code", "imported")
    raise Problem(
        f"{source}: its {code} {' and '.join(foreign)} is not {verb}, because the storage names it and "
        f"{unnamed}; if you trust this {code.split()[-1]}, add {options}"
    )


def named_code(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the code that a study names as {key: "module:name"}, without the built-in trainer.

    For a command, the result is {"command": its text}.
    """
    own = BUILT_IN
    code = {}
    if spec.get("command") is not None:
        own = COMMAND
        command, env = spec["command"], spec.get("env") or {}
        words = command if isinstance(command, list | tuple) else [command]
        code["command"] = command_text([str(word) for word in words], {k: str(v) for k, v in dict(env).items()})
    addresses = {key: current_address(str(spec.get(key, address))) for key, address in own.items()}
    return code | {key: address for key, address in addresses.items() if address != own[key]}


def _unpermitted(addresses: Mapping[str, str]) -> list[str]:
    """Return the addresses that the user has not named, the training function first.

    A configuration class in the module of a permitted address needs no permission of its own: the module may be
    imported, and only a pydantic model of this module is accepted.
    """
    modules = {address.partition(":")[0] for address in _permitted if _ADDRESS.fullmatch(address)}
    return [
        address
        for key, address in addresses.items()
        if address not in _permitted and not (key == "config" and address.partition(":")[0] in modules)
    ]


def _named_in_files(folder: Path) -> Iterator[str]:
    """Yield the addresses that the study files of a folder name."""
    for path in sorted(folder.glob("*.yaml")):
        try:
            text = path.read_text("utf-8")
            tree = parse_yaml(text) if _NAMES_CODE.search(text) else None
        except (OSError, UnicodeDecodeError, YamlError):
            continue
        if isinstance(tree, Mapping):
            yield from (tree[key] for key in BUILT_IN if isinstance(tree.get(key), str))
            yield from _named_command(tree)


def _named_command(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield the command that a study file names, as its text."""
    command, env = tree.get("command"), tree.get("env", {})
    with suppress(ValueError):  # quotes that do not end
        words = shlex.split(command) if isinstance(command, str) else command
        if isinstance(words, list) and isinstance(env, Mapping):
            yield command_text([str(word) for word in words], {key: str(value) for key, value in env.items()})

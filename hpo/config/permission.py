"""Which training code may be imported for a study of the storage.

A study stores the addresses of its training function and of its configuration class. Everyone who can write the storage
can change these addresses, and importing a module runs its code. Therefore hpo imports code that a stored study names
only if the user has named it: with --allow-train, or in a study file in the current folder or in ./studies.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo.config.addresses import current_address
from hpo.config.yaml import YamlError, parse_yaml
from hpo.errors import Problem

# The GPT trainer and its configuration, by key of a study file
BUILT_IN = {"train": "model.train.trainer:Trainer", "config": "model.config:TrainConfig"}
_ADDRESS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_NAMES_CODE = re.compile(r"^['\"]?(train|config)\b", re.M)  # a key at the top of a study file

_permitted: set[str] = set()  # of this process: what its command line and its study files name


def permit(addresses: Iterable[str]) -> None:
    """Allow this process to import the code at these addresses for studies of the storage."""
    _permitted.update(map(current_address, addresses))


def permit_options(addresses: Iterable[str]) -> None:
    """Allow the addresses of --allow-train.

    Raises:
        Problem: an address does not have the form module:name.
    """
    addresses = list(addresses)
    for address in addresses:
        if not _ADDRESS.fullmatch(address):
            raise Problem(f"--allow-train: must be module:name, such as waves:train, got {address!r:.80}")
    permit(addresses)


def check_permission(source: str, spec: Mapping[str, Any], read_files: bool = True) -> None:
    """Check that a study of the storage names only code that the user has named.

    source: the study in messages, such as "study waves". read_files: whether a study file in the current folder or in
        ./studies is a permission. Otherwise only --allow-train is.

    Raises:
        Problem: the study names other code, or an address does not have the form module:name.
    """
    addresses = named_code(spec)
    for key, address in addresses.items():
        if not _ADDRESS.fullmatch(address):
            raise Problem(f"{source}: {key}: must be module:name, the storage holds {address!r:.80}")
    if read_files and _unpermitted(addresses):
        permit(address for folder in (Path(), Path("studies")) for address in _named_in_files(folder))
    foreign = _unpermitted(addresses)
    if not foreign:
        return
    by_module = {address.partition(":")[0]: address for address in reversed(foreign)}  # one option for each module
    options = shlex.join(word for address in reversed(by_module.values()) for word in ("--allow-train", address))
    unnamed = "no study file in this folder and no option names it" if read_files else "no option names it"
    raise Problem(
        f"{source}: its training code {' and '.join(foreign)} is not imported, because the storage names it and "
        f"{unnamed}; if you trust this code, add {options}"
    )


def named_code(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the code that a study names as {key: "module:name"}, without the built-in trainer."""
    addresses = {key: current_address(str(spec.get(key, built_in))) for key, built_in in BUILT_IN.items()}
    return {key: address for key, address in addresses.items() if address != BUILT_IN[key]}


def _unpermitted(addresses: Mapping[str, str]) -> list[str]:
    """Return the addresses that the user has not named, the training function first.

    A configuration class in the module of a permitted address needs no permission of its own: the module may be
    imported, and only a pydantic model of this module is accepted.
    """
    modules = {address.partition(":")[0] for address in _permitted}
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

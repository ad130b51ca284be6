"""What must not change in the definition of a study: all but its name, budget, trackers and places of files."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hpo.study.earlier import complete_spec
from hpo.study.spec import DEFAULT_CONFIG

# Keys of a study that do not change what it runs.
CHANGEABLE = ("budget", "name", "track")

# Fields of TrainConfig that say where files are. They may differ between machines, because the data has a hash.
PLACES = ("data.path",)


def spec_fingerprint(spec: Mapping[str, Any]) -> str:
    """Return a hash of everything that must not change while a study runs: all keys except CHANGEABLE and places.

    The place of the data does not count, because the hash of the data is stored and compared.
    """
    spec = complete_spec(spec)
    fixed = {key: value for key, value in spec.items() if key not in CHANGEABLE}
    base = without_places(fixed["base"]) if spec["config"] == DEFAULT_CONFIG else fixed["base"]
    return hashlib.sha256(json.dumps({**fixed, "base": base}, sort_keys=True).encode()).hexdigest()


def with_places(spec: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition with the places of another definition of the same study."""
    if spec["config"] != DEFAULT_CONFIG or other["config"] != DEFAULT_CONFIG:
        return dict(spec)
    places = {key: value for key, value in other["base"]["data"].items() if f"data.{key}" in PLACES}
    data = spec["base"]["data"]
    return {**spec, "base": {**spec["base"], "data": {k: places.get(k, value) for k, value in data.items()}}}


def without_places(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of the GPT trainer, as JSON values, without the fields that only say where files are."""
    data = {key: value for key, value in base["data"].items() if f"data.{key}" not in PLACES}
    return {**base, "data": data}

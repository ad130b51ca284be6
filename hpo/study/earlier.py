"""Complete the definition of a study that an earlier version has stored, so that the study keeps its rules."""

from collections.abc import Mapping
from typing import Any

from hpo.config.addresses import with_current_addresses

# Keys that a stored definition may lack, with values that do what the versions without them did. A new field of a study
# file belongs here if its default changes what a study does.
EARLIER_KEYS: dict[str, Any] = {
    "direction": "minimize",
    "probe": "off",
    "command": None,
    "env": {},
    "metric": None,
    "steps": None,
    "objectives": [],
    "track": [],
}
# The same for the fields of a component: key of the study file and name of the component -> fields.
EARLIER_FIELDS: dict[tuple[str, str], dict[str, Any]] = {
    ("pruner", "median"): {"peers": "finished"},
    ("pruner", "percentile"): {"peers": "finished"},
    ("pruner", "asha"): {"learn_from": "all"},
}


def complete_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored definition of any version as this version would have stored it."""
    complete = EARLIER_KEYS | with_current_addresses(spec)
    for (key, name), fields in EARLIER_FIELDS.items():
        component = complete.get(key)
        if isinstance(component, Mapping) and component.get("name") == name:
            complete[key] = {**fields, **component}
    return complete

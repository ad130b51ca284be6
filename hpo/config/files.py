"""Bases: named configurations that studies, claims and `hpo train` begin from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hpo.config.addresses import with_current_addresses
from hpo.config.discovery import find_base
from hpo.config.validation import error_messages
from hpo.config.yaml import YamlError, dump_yaml, parse_yaml
from hpo.errors import Problem
from model.section import updated

M = TypeVar("M", bound=BaseModel)


def load_base(base: str, key: str, kind: type[M]) -> M:
    """Return a base by name or path.

    key: what to call it in a message.

    Raises:
        Problem: there is none of that name, or it is no configuration.
    """
    path = find_base(base, key)
    try:
        return kind.model_validate(read_config(path)[0])
    except ValidationError as error:
        raise Problem(*(f"{key}: {path}: {line}" for line in error_messages(error, kind))) from None


def resolve_base(tree: Mapping[str, Any], kind: type[M]) -> M:
    """Return the configuration of a study file's `base`: one in full, or {from: NAME} and what differs from it.

    Raises:
        Problem: `from` names no base.
        pydantic.ValidationError: the result is not a valid configuration.
    """
    own = {key: value for key, value in tree.items() if key != "from"}
    if "from" not in tree:
        return kind.model_validate(own)
    if not isinstance(tree["from"], str):
        raise Problem(f"base.from: must be the name of a base, got {tree['from']!r}")
    base = load_base(tree["from"], "base.from", kind)
    return updated(base, dotted_fields(own, base))


def dotted_fields(tree: Mapping[str, Any], base: BaseModel) -> dict[str, Any]:
    """Return {"optimizer.lr": 1e-3} for {"optimizer": {"lr": 1e-3}}, where `base` has a section of that name.

    Raises:
        Problem: a field is given in both ways.
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and isinstance(getattr(base, key, None), BaseModel)
        found = {f"{key}.{field}": inner for field, inner in value.items()} if nested else {key: value}
        if twice := sorted(values.keys() & found.keys()):
            raise Problem(f"base.{twice[0]}: given twice, as a field of a section and as a dotted field; keep one")
        values |= found
    return values


def config_path(config: Path) -> Path:
    """Return the file that `hpo train` was given: a file that is there, else a base of this name.

    Raises:
        Problem: there is neither.
    """
    if config.is_file() or config.suffix or len(config.parts) != 1:
        return config
    return find_base(str(config), "config")


def config_text(config: BaseModel, provenance: Mapping[str, Any]) -> str:
    """Return a complete, trainable configuration as YAML, with where it comes from."""
    return dump_yaml({**config.model_dump(mode="json"), "provenance": dict(provenance)})


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration and the provenance that a file holds.

    Raises:
        Problem: it cannot be read.
    """
    try:
        tree = parse_yaml(path.read_text("utf-8"))
    except FileNotFoundError:
        raise Problem(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise Problem(f"{path}: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("provenance", {}), dict):
        raise Problem(f"{path}: must be a configuration, as `hpo export` writes it")
    provenance = with_current_addresses(tree.pop("provenance", {}))
    return tree, provenance

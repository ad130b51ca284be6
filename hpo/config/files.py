"""Read and write configuration files. A base is a named configuration file from which other configurations start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hpo.config.addresses import with_current_addresses
from hpo.config.discovery import find_base, shipped_folder
from hpo.config.validation import error_messages
from hpo.config.yaml import YamlError, dump_yaml, parse_yaml
from hpo.errors import Problem
from model.config import TrainConfig
from model.section import updated

M = TypeVar("M", bound=BaseModel)


def load_base(base: str, key: str, kind: type[M]) -> M:
    """Return a base by name or path.

    key: name of the key in messages. kind: class of the configuration.

    Raises:
        Problem: there is no base of that name, or it is not a valid configuration.
    """
    path = find_base(base, key)
    try:
        return kind.model_validate(read_config(path)[0])
    except ValidationError as error:
        raise Problem(*(f"{key}: {path}: {line}" for line in error_messages(error, kind))) from None


def resolve_base(tree: Mapping[str, Any], kind: type[M]) -> M:
    """Return the configuration of the key `base` of a study file.

    tree: the fields of the configuration, or {from: NAME} and the fields that differ from that base.

    Raises:
        Problem: there is no base of that name.
        pydantic.ValidationError: the result is not a valid configuration.
    """
    own = {key: value for key, value in tree.items() if key != "from"}
    if "from" not in tree:
        return kind.model_validate(own)
    if not isinstance(tree["from"], str):
        raise Problem(f"base.from: must be the name of a base, got {tree['from']!r}")
    base = load_base(tree["from"], "base.from", kind)
    return updated(base, dotted_fields(own, base))


def stated_fields(tree: Mapping[str, Any], base: BaseModel) -> list[str]:
    """Return the dotted fields that the key `base` of a study file states, and those that a base of the user states.

    A base that ships with hpo states nothing: its values may change with the version.

    tree, base: the argument and the result of `resolve_base`.
    """
    stated = dotted_fields({key: value for key, value in tree.items() if key != "from"}, base)
    if "from" in tree:
        path = find_base(tree["from"], "base.from")
        if shipped_folder().resolve() not in path.resolve().parents:
            stated |= dotted_fields(read_config(path)[0], base)
    return list(stated)


def dotted_fields(tree: Mapping[str, Any], base: BaseModel) -> dict[str, Any]:
    """Return fields by dotted path: {"optimizer.lr": 1e-3} for {"optimizer": {"lr": 1e-3}}.

    base: the configuration whose sections are expanded; other mappings are values.

    Raises:
        Problem: a field is given in both forms.
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and isinstance(getattr(base, key, None), BaseModel)
        fields = {f"{key}.{field}": inner for field, inner in value.items()} if nested else {key: value}
        if twice := sorted(values.keys() & fields.keys()):
            raise Problem(
                f"base.{twice[0]}: must be given once, got a field of a section and a dotted field; remove one of them"
            )
        values |= fields
    return values


def config_path(config: Path) -> Path:
    """Return the file of a configuration, given by path or as the name of a base.

    Raises:
        Problem: there is no base of that name.
    """
    if config.is_file() or config.suffix or len(config.parts) != 1:
        return config
    return find_base(str(config), "config")


def config_text(config: BaseModel, provenance: Mapping[str, Any]) -> str:
    """Return a complete configuration as YAML, with its provenance: the study and trial it comes from.

    Values that follow from other fields, such as beta2 from beta2_half_life, are comments beside these fields, and
    `provenance.derived` holds them.
    """
    derived = config.derived() if isinstance(config, TrainConfig) else {}
    origin = {key: value for key, value in provenance.items() if key != "derived"}
    origin |= {"derived": derived} if derived else {}
    text = dump_yaml({**config.model_dump(mode="json"), "provenance": origin})
    return _with_comments(text, _derived_comments(config, derived)) if isinstance(config, TrainConfig) else text


def _derived_comments(config: TrainConfig, derived: Mapping[str, float]) -> dict[str, str]:
    """Return field -> the comment that says which raw value follows from it."""
    comments = {}
    for path, value in derived.items():
        section, _, raw = path.partition(".")
        other = getattr(config, section).forms[raw]
        comments[f"{section}.{other}"] = f"{raw} is {value!r} with {config.update_tokens()} tokens per update"
    return comments


def _with_comments(text: str, comments: Mapping[str, str]) -> str:
    """Return YAML of two levels with comments at the end of lines. comments: dotted field -> comment."""
    lines, section = [], ""
    for line in text.splitlines(keepends=True):
        if not line.startswith(" "):
            section = line.partition(":")[0]
        comment = comments.get(f"{section}.{line.strip().partition(':')[0]}")
        lines.append(line if comment is None else f"{line.rstrip()}  # {comment}\n")
    return "".join(lines)


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration and the provenance in a file.

    Raises:
        Problem: the file cannot be read, or it is not a configuration.
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

"""Convert pydantic's errors to messages that name the key as the user wrote it, the rule, the value and the remedy."""

import contextlib
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from hpo.config.foreign_names import component_remedy, field_remedy
from model.section import close_match

Kind = type[BaseModel]
LONGEST = 200  # characters of a value in a message

LIMITS = {
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "dict": "a mapping",
    "model": "a mapping",
    "list": "a list",
    "tuple": "a list",
}


class NameOnly(dict[str, str]):
    """The section {name: X} of a component for which the user wrote only the name X."""


def explain_errors(error: ValidationError, kind: Kind) -> list[tuple[str, str]]:
    """Return (key, rule) for each problem, such as ("optimizer.beta2", "must be less than 1, got 1.5").

    kind: the class that was validated.
    """
    rules: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        key = _key(kind, problem["loc"])
        if problem["type"].startswith("union_tag") and not isinstance(problem["input"], NameOnly):
            key = f"{key}.name".lstrip(".")
        rule = _rule(problem, kind, key)
        # A union such as int | float has one error for each member. An error about a bound is more useful than an error
        # about a type. Of two types, the last one is the wider type.
        if key not in rules or not problem["type"].endswith(("_type", "_parsing")) or _is_type(rules[key]):
            rules[key] = rule
    return list(rules.items())


def error_messages(error: ValidationError, kind: Kind, prefix: str = "") -> list[str]:
    """Return the problems as lines such as "base.optimizer.lr: must be ...".

    prefix: put before each key, such as "base".
    """
    lines = []
    for key, rule in explain_errors(error, kind):
        path = ".".join(part for part in (prefix.rstrip("."), key) if part)
        lines.append(f"{path}: {rule}" if path else rule)
    return lines


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known word most similar to a word, "" if no word is similar."""
    match = close_match(word, known)
    return f"; did you mean {match}?" if match else ""


def nearest_path(path: str, known: Iterable[str], value: Any = None) -> str:
    """Return "; did you mean X?" for the known field most similar to a dotted path, "" if no field is similar.

    A name that another program uses for a field comes first: "; use optimizer.lr" for learning_rate. Otherwise
    only one part of the path may be misspelled: with a common first part, all fields look similar.

    value: what was given for the field.
    """
    known = list(known)
    if remedy := field_remedy(path, known, value):
        return remedy
    section, _, leaf = path.rpartition(".")
    split = [other.rpartition(".") for other in known]
    siblings = {name: f"{parent}{dot}{name}" for parent, dot, name in split if parent == section}
    namesakes = {parent: f"{parent}{dot}{name}" for parent, dot, name in split if name == leaf}
    for word, candidates in (leaf, siblings), (section, namesakes):
        if (match := close_match(word, candidates)) is not None:
            return f"; did you mean {candidates[match]}?"
    return f"; did you mean {next(iter(namesakes.values()))}?" if namesakes else ""


def field_paths(kind: Kind, prefix: str = "") -> list[str]:
    """Return all dotted fields of a configuration class, including those of all members of its unions."""
    fields: dict[str, None] = {}
    for name, field in kind.model_fields.items():
        sections = [m for m in union_members(field.annotation) if _is_section(m)]
        for section in sections:
            fields |= dict.fromkeys(field_paths(section, f"{prefix}{name}."))
        if not sections:
            fields[prefix + name] = None
    return list(fields)


def union_members(annotation: Any) -> list[Any]:
    """Return the types that a field accepts: the members of a union without None, otherwise the type itself."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for arg in get_args(annotation) if arg is not type(None) for m in union_members(arg)]
    return [annotation]


def shown_value(value: Any) -> str:
    """Return a value for a message, shortened to LONGEST characters."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def number_remedy(value: Any) -> str:
    """Return the remedy for a quoted number, such as "0.1" in YAML, or "" for other values."""
    if isinstance(value, str) and value.lower().lstrip("+-").startswith(tuple("0123456789.")):
        with contextlib.suppress(ValueError):
            float(value)
            return "; remove the quotes"
    return ""


def _rule(problem: ErrorDetails, root: Kind, key: str) -> str:
    word, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if word in ("missing", "union_tag_not_found"):
        return "required"
    if word == "extra_forbidden":
        return "no such field" + _unknown(root, problem["loc"], key, value)
    if word == "union_tag_invalid":
        return _one_of(context["expected_tags"], context["tag"])
    if word == "literal_error":
        return _one_of(context["expected"].replace(" or ", ", "), value)
    if word in LIMITS:
        text, limit = LIMITS[word]
        return f"must be {text} {_short(context[limit])}, got {shown_value(value)}"
    if word == "too_short":
        least, n = context["min_length"], context["actual_length"]
        return "must not be empty" if least == 1 else f"must have at least {least}, got {n}"
    if word == "value_error":
        return str(context["error"])
    expected = KINDS.get(word.partition("_")[0])
    if expected is None:
        return f"{problem['msg'][:1].lower()}{problem['msg'][1:]}, got {shown_value(value)}"
    quotes = "; put it in quotes" if word.startswith("string") and isinstance(value, bool | int | float) else ""
    remedy = number_remedy(value) if "number" in expected else quotes
    return f"must be {expected}, got {shown_value(value)}{remedy}"


def _one_of(expected: str, value: Any) -> str:
    like = nearest(repr(value), expected.split(", ")) if isinstance(value, str) else ""
    like = component_remedy(value, expected) or like
    return f"must be one of {expected}, got {shown_value(value)}{like}"


def _is_type(rule: str) -> bool:
    return any(rule.startswith(f"must be {kind},") for kind in KINDS.values())


def _short(limit: Any) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _key(root: Kind, loc: tuple[int | str, ...]) -> str:
    """Return a location as a dotted key, without the parts that pydantic adds for members of unions."""
    return ".".join(_walk(root, loc)[0])


def _unknown(root: Kind, loc: tuple[int | str, ...], key: str, value: Any) -> str:
    """Return the remedy for an unknown key: a similar field of the same section, another section or component."""
    prefix = key.rpartition(".")[0]
    parent = _walk(root, loc[:-1])[1]
    beside = [f"{prefix}.{name}".lstrip(".") for name in parent.model_fields] if _is_section(parent) else []
    known = field_paths(root)
    if key in known and _names(parent):
        return f" while {prefix}.name is {_names(parent)[0]!r}"
    return nearest_path(key, [*beside, *known], value)


def _walk(root: Kind, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Return the parts of the key at a location, and the type at that location."""
    key: list[str] = []
    current: Any = root
    for word in loc:
        kinds = union_members(current)
        if current is not None and len(kinds) > 1:
            current = _member(current, word)
            continue
        if word != "[key]":
            key.append(str(word) or "''")
        current = _inside(kinds[0], word) if kinds else None
        if len(alone := union_members(current)) == 1:
            current = alone[0]
    return key, current


def _inside(kind: Any, word: int | str) -> Any:
    """Return the annotation of the field or item `word` of a type, None if it is not known."""
    if _is_section(kind):
        field = kind.model_fields.get(word)
        return field.annotation if field else None
    if issubclass(get_origin(kind) or object, Mapping):
        return get_args(kind)[1]
    if get_origin(kind) in (list, tuple):
        return get_args(kind)[0]
    return None


def _member(union: Any, word: int | str) -> Any:
    """Return the member of a union for the part `word` of a location: its tag, its `name` or its class."""
    while get_origin(union) is Annotated:
        union = get_args(union)[0]
    for arg in get_args(union):
        kind = union_members(arg)[0]
        tags = [meta.tag for meta in get_args(arg)[1:] if isinstance(meta, Tag)]
        if word in (*tags, getattr(kind, "__name__", None)) or word in _names(kind):
            return kind
    return None


def _names(kind: Any) -> tuple[Any, ...]:
    if not _is_section(kind) or "name" not in kind.model_fields:
        return ()
    return get_args(kind.model_fields["name"].annotation)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)

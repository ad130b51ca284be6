"""The fields of a section of a configuration as Markdown tables: type, bounds, default, meaning."""

import inspect
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
SYMBOLS = {Gt: ">", Ge: "≥", Lt: "<", Le: "≤"}


def cell(text: str) -> str:
    """Return text as one cell of a Markdown table, arXiv numbers as links."""
    text = re.sub(r"\bNone\b", "`null`", " ".join(text.split()).replace("|", "\\|"))
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, Annotated wrappers removed."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in alternatives(part)]
    return [annotation]


def type_name(annotation: Any) -> str:
    """Return a type as a user writes it in YAML."""
    names = []
    for member in alternatives(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if origin is Literal:
            names += [f"`{value}`" for value in arguments]
        elif member in (type(None), None):
            names.append("null")
        elif origin is dict:
            names.append(f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}")
        elif origin in (list, tuple):
            names.append(f"list of {type_name(arguments[0])}")
        elif isinstance(member, type) and issubclass(member, BaseModel):
            names.append("mapping")
        else:
            words = {int: "integer", float: "number", str: "string", bool: "`true` or `false`", Any: "value"}
            names.append(words.get(member, getattr(member, "__name__", str(member))))
    return ", ".join(dict.fromkeys(names))


def constraints(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Yield the bounds of a type, those inside optional types included."""
    yield from metadata
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        for item in more:
            yield from item.metadata if isinstance(item, FieldInfo) else [item]
        yield from constraints(inner)
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from constraints(member)


def bounds(field: FieldInfo) -> str:
    """Return the bounds of a field, such as "> 0, ≤ 1"."""
    texts = []
    for item in constraints(field.annotation, tuple(field.metadata)):
        for kind, symbol in SYMBOLS.items():
            if isinstance(item, kind):
                value = getattr(item, kind.__name__.lower())
                texts.append(f"{symbol} {'2^63' if value == 2**63 else f'{value:g}'}")
        if isinstance(item, MinLen) and item.min_length:
            texts.append(f"at least {item.min_length} long")
    return ", ".join(dict.fromkeys(texts))


def default(field: FieldInfo) -> str:
    """Return the default of a field as YAML, "required" where it has none."""
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else f"`{in_yaml(value)}`"


def in_yaml(value: Any) -> str:
    """Return a value in YAML's flow style."""
    if isinstance(value, BaseModel):
        name = {"name": value.name} if hasattr(value, "name") else {}
        return in_yaml(name | value.model_dump(exclude_unset=True))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {in_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(section: type[BaseModel], prefix: str = "", skip: tuple[str, ...] = ()) -> str:
    """Return a section's fields as a Markdown table."""
    rows = ["| field | type | bounds | default | meaning |", "|---|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if name in skip or not field.description:
            continue
        cells = (f"`{prefix}{name}`", type_name(field.annotation), bounds(field), default(field), field.description)
        rows.append("| " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""


def described(kind: type[BaseModel]) -> str:
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", inspect.cleandoc(kind.__doc__ or ""))


def components(section: type[BaseModel], key: str, prefix: str) -> Iterator[str]:
    """Yield one part for each component that a field may name."""
    kinds = [k for k in alternatives(section.model_fields[key].annotation) if isinstance(k, type)]
    chosen = getattr(section.model_fields[key].get_default(call_default_factory=True), "name", None)
    if chosen is not None:
        yield f"Default: `{chosen}`."
    shared = set.intersection(*(set(kind.model_fields) for kind in kinds)) - {"name"} if len(kinds) > 1 else set()
    same = tuple(
        name for name in kinds[0].model_fields
        if name in shared and len({row(kind, name) for kind in kinds}) == 1
    )  # fmt: skip
    if same and len(kinds) > 1:
        others = tuple(name for name in kinds[0].model_fields if name not in same)
        yield f"Fields that every `{key}` has:\n\n{table(kinds[0], prefix, others)}"
    for kind in kinds:
        name = kind.model_fields["name"].default if "name" in kind.model_fields else None
        heading = f"### `{prefix}name: {name}`\n\n" if name else ""
        yield f"{heading}{described(kind)}\n\n{table(kind, prefix, ('name', *same))}"


def row(kind: type[BaseModel], name: str) -> tuple[str, ...]:
    field = kind.model_fields[name]
    return type_name(field.annotation), bounds(field), default(field), field.description or ""

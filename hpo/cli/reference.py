"""The commands and their options as data, from which the documentation generates the command reference."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from textwrap import indent
from types import NoneType
from typing import Any, get_args

import typer

from hpo.cli.main import app


@dataclass(frozen=True)
class Parameter:
    """One option or argument of a command."""

    names: tuple[str, ...]
    """The spellings, for example ("--output", "-o"). An argument has one: its name in capitals or its metavar."""
    type: str
    """The type of the value with its bounds, the allowed values separated by |, the metavar, or "flag"."""
    required: bool
    default: str | None
    """The default as a user types it. None if the option has no default or the help names it."""
    help: str


@dataclass(frozen=True)
class Command:
    """One command of `hpo`."""

    name: str
    """The words after `hpo`, for example "data prepare"."""
    panel: str
    """The title under which `hpo --help` lists the command."""
    help: str
    """Paragraphs, the first of which starts with a one-sentence summary. Indented lines keep their line breaks."""
    example: str
    """A complete command line."""
    arguments: tuple[Parameter, ...]
    options: tuple[Parameter, ...]


def commands() -> list[Command]:
    """Return all commands in the order of `hpo --help`, without hidden options."""
    return list(_walk(typer.main.get_command(app), (), ""))


def _walk(command: Any, path: tuple[str, ...], panel: str) -> Iterator[Command]:
    """Yield a command, or the commands of a group and of the groups in it."""
    panel = getattr(command, "rich_help_panel", None) or panel
    children = getattr(command, "commands", None)
    if children is not None:
        for name, child in children.items():
            yield from _walk(child, (*path, name), panel)
        return
    annotations = inspect.signature(command.callback, eval_str=True).parameters
    shown = [(p, annotations[p.name].annotation) for p in command.params if not p.hidden]
    yield Command(
        name=" ".join(path),
        panel=panel,
        help=_paragraphs(command.help),
        example=command.epilog.removeprefix("Example: "),
        arguments=tuple(_parameter(p, of) for p, of in shown if p.param_type_name == "argument"),
        options=tuple(_parameter(p, of) for p, of in shown if p.param_type_name == "option"),
    )


def _paragraphs(text: str) -> str:
    """Return a help text, with the blocks that typer must not wrap, marked by a backspace, indented by four spaces."""
    blocks = [inspect.cleandoc(block) for block in inspect.cleandoc(text).split("\n\n")]
    return "\n\n".join(
        indent(block.removeprefix("\b\n"), "    ") if block.startswith("\b") else block for block in blocks
    )


def _parameter(parameter: Any, annotation: Any) -> Parameter:
    """Return the description of a parameter of typer and of the annotation that declares it."""
    kind, info = get_args(annotation)
    name = info.metavar or parameter.name.upper()
    return Parameter(
        names=(name,) if parameter.param_type_name == "argument" else (*parameter.opts, *parameter.secondary_opts),
        type=info.metavar or _type_text(kind, info),
        required=parameter.required,
        default=_default_text(parameter),
        help=parameter.help,
    )


def _type_text(kind: Any, info: Any) -> str:
    kinds = [k for k in get_args(kind) or (kind,) if k is not NoneType]  # `int | None` is an int that may be omitted
    if kinds == [bool]:
        return "flag"
    if isinstance(kinds[0], type) and issubclass(kinds[0], StrEnum):
        return "|".join(kinds[0])
    name = {"str": "text", "Path": "path"}.get(kinds[0].__name__, kinds[0].__name__)
    bounds = [
        f"{word} {bound:g}" for word, bound in (("at least", info.min), ("at most", info.max)) if bound is not None
    ]
    return ", ".join([name, *bounds])


def _default_text(parameter: Any) -> str | None:
    """Return the default as a user types it, None for a flag, an empty text and a default that the help explains."""
    default = parameter.default
    if isinstance(default, bool) and parameter.secondary_opts:
        return str(parameter.opts[0] if default else parameter.secondary_opts[0])
    return None if default is None or default is False or default == "" else str(default)

"""Read the parameters of a training script from its source, without running it.

Two forms are known: options of argparse, and global variables that `--name=value` replaces, as in nanoGPT.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hpo.errors import Problem

_SETS_GLOBALS = re.compile(r"configurator\.py|globals\(\)\[")
_METRICS = re.compile(
    r"((?:val|valid|validation|eval|test)[\w/ ]*?(?:loss|acc|accuracy|bpb|ppl|score)|loss|accuracy)\W*$", re.I
)
_STEP = re.compile(r"(step|iter|iteration|epoch)\W*$", re.I)
VALUE = r"[-+.\w]+"


class Parameter(NamedTuple):
    """A parameter of a script: its name, its default or None, and the values that argparse accepts."""

    name: str
    default: Any
    choices: list[Any] | None = None


class Script(NamedTuple):
    """What a script says about itself: its parameters, and the pattern and name of the metric that it prints."""

    parameters: list[Parameter]
    pattern: str | None
    objective: str | None
    reports: bool


def read_script(path: Path) -> Script:
    """Return the parameters and the metric of a training script.

    Raises:
        Problem: the file cannot be read, or it is not Python.
    """
    try:
        text = path.read_text("utf-8")
        tree = ast.parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"--from: {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    except (SyntaxError, ValueError) as error:
        raise Problem(f"--from: {path} must be a Python script: {error}") from None
    parameters = list(_options(tree))
    if not parameters and _SETS_GLOBALS.search(text):
        parameters = list(_globals(tree, text))
    distinct = {parameter.name: parameter for parameter in parameters}
    pattern, objective = next(_metrics(tree), (None, None))
    return Script(list(distinct.values()), pattern, objective, "current_trial" in text)


def _options(tree: ast.Module) -> Iterator[Parameter]:
    """Yield the options of calls of add_argument that take a number or a text."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "add_argument"):
            continue
        words = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        name = next((word.removeprefix("--") for word in words if word.startswith("--")), None)
        given = {word.arg: word.value for word in node.keywords if word.arg is not None}
        if name is None or given.keys() & {"action", "nargs"}:
            continue
        choices = _constant(given.get("choices"))
        default = _constant(given.get("default"))
        if isinstance(default, int) and getattr(given.get("type"), "id", "") == "float":
            default = float(default)
        yield Parameter(name, default, list(choices) if isinstance(choices, list | tuple) else None)


def _globals(tree: ast.Module, text: str) -> Iterator[Parameter]:
    """Yield the global variables with a constant that are set before --name=value replaces them."""
    for node in tree.body:
        if _SETS_GLOBALS.search(ast.get_source_segment(text, node) or ""):
            return
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _constant(node.value)
            if isinstance(value, bool | int | float | str) and not node.targets[0].id.startswith("_"):
                yield Parameter(node.targets[0].id, value)


def _constant(node: ast.expr | None) -> Any:
    """Return the value of an expression without names, such as 6e-4 or 5 * 8, None for any other."""
    if node is None:
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _constant(node.left), _constant(node.right)
        return left * right if isinstance(left, int | float) and isinstance(right, int | float) else None
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _metrics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (pattern, name) of the metrics in printed f-strings: those of a validation first."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found += _metrics_of(node)
    yield from sorted(found, key=lambda pair: not pair[1].startswith(("val", "eval", "test")))


def _metrics_of(node: ast.JoinedStr) -> Iterator[tuple[str, str]]:
    step, text = "", ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text = str(part.value)
        elif (match := _STEP.search(text)) and not step:
            step = f"{re.escape(match[0].lstrip())}(?P<step>\\d+).*".replace("\\ ", " ")
        elif match := _METRICS.search(text):
            name = re.sub(r"\W+", "_", match[1].strip()).lower()
            yield f"{step}{re.escape(match[0])}(?P<{name}>{VALUE})".replace("\\ ", " "), name

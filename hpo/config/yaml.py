"""YAML 1.2, read and written by ruamel.yaml.

ruamel.yaml reads 1e-4 as a number and `off` as text, and refuses a key that is given twice. This module adds:

- limits on aliases, numbers, keys and tags, because users write these files;
- dates are text, because no field of a configuration is a date;
- one-line error messages with line and column;
- dumped files that YAML 1.1 readers such as PyYAML read as the same values.
"""

import copy
import functools
import io
import sys
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import implicit_resolvers

MAX_VALUES = 100_000  # with every alias written out: ten lines of aliases of aliases can stand for 1e10 values
_TAG = "tag:yaml.org,2002:"


class YamlError(ValueError):
    """Text that is not valid YAML or exceeds a limit; the message gives line and column."""


class _Constructor(SafeConstructor):
    """Builds text, numbers, booleans, null, lists and mappings, and refuses every other type."""

    def construct_yaml_str(self, node: ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        if any("\ud800" <= character <= "\udfff" for character in text):  # from an escape such as "\ud800"
            raise _refusal(f"must not contain half of a surrogate pair, got {text[:40]!r}", node)
        return text

    def construct_number(self, node: ScalarNode) -> bool | float | str:
        """Return a boolean or a number, or the text where ruamel.yaml's rules accept a number without digits."""
        kind, text = str(node.tag).removeprefix(_TAG), str(node.value)
        try:
            value = getattr(SafeConstructor, f"construct_yaml_{kind}")(self, node) if len(text) <= 400 else 10**400
        except (ValueError, LookupError):
            if node.ctag.handle is None:
                return text
            raise _refusal(f"must be {kind}, got {text[:40]!r}", node) from None
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise _refusal(f"must be at most {sys.float_info.max:.1e}, got a number of {len(text)} digits", node)
        return value

    def construct_word(self, node: ScalarNode) -> str:
        """Return text that ruamel.yaml would read as another type, such as a date. An explicit tag is an error."""
        return self.construct_yaml_str(node) if node.ctag.handle is None else self.construct_undefined(node)

    def construct_undefined(self, node: Node) -> NoReturn:
        raise _refusal(f"tag {str(node.tag).replace(_TAG, '!!')} is not supported; remove it", node)


for _names, _method in (
    ("str", _Constructor.construct_yaml_str),
    ("bool int float", _Constructor.construct_number),
    ("timestamp value merge", _Constructor.construct_word),  # a date, `=`, and `<<` where it is not a key
    ("binary omap pairs set", _Constructor.construct_undefined),
):
    for _name in _names.split():
        _Constructor.add_constructor(_TAG + _name, _method)
_Constructor.add_constructor(None, _Constructor.construct_undefined)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML document: a tree of dict, list, str, int, float, bool and None.

    Raises:
        YamlError: the text is not valid YAML.
    """
    return copy.deepcopy(_parse(text))


@functools.lru_cache(maxsize=16)  # a ledger reads the file of its base for every claim
def _parse(text: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.composer.warn_double_anchors = False  # YAML allows an anchor to be defined again
    try:
        document = yaml.compose(text)
        if document is None:
            return None
        _count_values(document, {}, yaml.constructor)
        return yaml.constructor.construct_document(document)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        remedy = "; indent with spaces" if "'\\t'" in (error.problem or "") else ""
        raise YamlError(f"{where}{error.problem or 'not YAML'}{remedy}") from None
    except (YAMLError, ValueError, AssertionError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        raise YamlError(f"not YAML ({reason})") from None


def _count_values(node: Node, counts: dict[Node, int | None], constructor: _Constructor) -> int:
    """Return how many values a node stands for, with every alias written out.

    counts: the results so far; None for a node whose content is being counted.

    Raises:
        MarkedYAMLError: there are too many, an alias contains itself, or a key is not distinct text.
    """
    if node not in counts:
        counts[node] = None
        parts: list[Node] = node.value if isinstance(node, SequenceNode) else []
        if isinstance(node, MappingNode):
            _check_keys(node, constructor)
            parts = [part for pair in node.value for part in pair]
        counts[node] = 1 + sum(_count_values(part, counts, constructor) for part in parts)
    n_values = counts[node]
    if n_values is None:
        raise _refusal("an anchor must not contain its own alias", node)
    if n_values > MAX_VALUES:
        raise _refusal(f"must stand for at most {MAX_VALUES:,} values, with every alias written out", node)
    return n_values


def _check_keys(node: MappingNode, constructor: _Constructor) -> None:
    keys = set()
    for key_node, _ in node.value:
        if key_node.tag == f"{_TAG}merge":
            continue
        key = constructor.construct_non_recursive_object(key_node) if isinstance(key_node, ScalarNode) else None
        if isinstance(key, float):  # a fraction of a run, which pydantic also reads from text
            key = key_node.value = repr(key)
            key_node.tag = f"{_TAG}str"
        if not isinstance(key, str):
            raise _refusal("a key must be text; put it in quotes", key_node)
        if key in keys:
            raise _refusal(f"{key} is given twice", key_node)
        keys.add(key)


def _refusal(rule: str, node: Node) -> MarkedYAMLError:
    return MarkedYAMLError(problem=rule, problem_mark=node.start_mark)


def parse_value(text: str) -> Any:
    """Return the value of a command-line argument: a number, a boolean, null, a list, a mapping, or the text itself."""
    try:
        value = parse_yaml(text)
    except YamlError:
        return text
    opening = text.strip()[:1]
    if isinstance(value, str):
        return value if opening in ("'", '"') else text  # `my #1.txt` contains no comment
    if isinstance(value, list | dict):
        return value if opening in ("[", "{") else text
    return text if value is None and text.strip().lower() not in ("null", "~") else value


class _Representer(SafeRepresenter):
    """Writes scalars in a form that YAML 1.1 and YAML 1.2 readers read alike."""

    def represent_str(self, data: str) -> Any:
        style = '"' if not data.isprintable() else None  # unescaped, \x85 and similar characters end a line
        if any(data[:1] in starts and rule.match(data) for _, _, rule, starts in implicit_resolvers):
            style = style or "'"  # such as `off`, which is false in YAML 1.1
        return self.represent_scalar(f"{_TAG}str", data, style=style)

    def represent_float(self, data: float) -> Any:
        node = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e")  # YAML 1.1 reads 1e-05 as text
        return node


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def dump_yaml(tree: Any, ascii_only: bool = False) -> str:
    """Return a tree as YAML, with its keys in their order; `parse_yaml` reads it back as the same tree.

    Control characters and invisible marks are escapes. ascii_only: so are all characters that are not ASCII.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = sys.maxsize  # folded text would end its lines with spaces
    yaml.allow_unicode = not ascii_only
    text = io.StringIO()
    yaml.dump(tree, text)
    # ruamel.yaml does not escape all characters of a quoted text. Python's escapes are those of YAML.
    return "".join(c if c.isprintable() or c in "\n\xa0\u3000" else _escape(c) for c in text.getvalue())


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

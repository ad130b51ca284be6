"""YAML as people mean it: 1e-4 is a number, off is a word, a key given twice is a mistake."""

import math
import re
import sys
from typing import Any

import yaml

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INT = re.compile(rf"^[-+]?{_DIGITS}$|^0x[0-9a-fA-F]{{1,64}}$|^0o[0-7]{{1,64}}$")
_FLOAT = re.compile(
    rf"^[-+]?(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?$"
    rf"|^[-+]?{_DIGITS}[eE][-+]?[0-9]+$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_NUMBER_STARTS = list("-+0123456789.")
MOST = 100_000  # values of a text, its aliases written out: ten lines of aliases of aliases can stand for 1e10


class YamlError(ValueError):
    """Text that is not YAML, or says a thing twice; the message gives line and column."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars, and 400_000; PyYAML reads 1e-4 as text, 1:30 and 017 as other numbers, off as False."""

    def construct_document(self, node: yaml.Node) -> Any:
        if _size(node, {}) > MOST:
            raise _refusal(f"must stand for at most {MOST:,} values, aliases written out", node)
        self.deep_construct = True  # an alias inside its own anchor is then refused
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for i, (key_node, value) in enumerate(node.value if isinstance(node, yaml.MappingNode) else ()):
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, float):  # a share of a run, which pydantic reads from a word too
                key = repr(key)
                node.value[i] = yaml.ScalarNode("tag:yaml.org,2002:str", key), value
            if not isinstance(key, str):
                raise _refusal("a key must be a word; quote it", key_node)
            if key in seen:
                raise _refusal(f"{key} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def scalar(self, node: yaml.ScalarNode) -> bool | int | float:
        """Return a boolean or number, which an explicit tag such as !!int may have put on any text."""
        text = str(self.construct_scalar(node)).lower()
        if _BOOL.match(text):
            return text == "true"
        if _INT.match(text):
            return self._whole(text, node)
        if _FLOAT.match(text):
            return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        raise _refusal(f"must be {node.tag.rpartition(':')[2]}, got {node.value!r}", node)

    def _whole(self, text: str, node: yaml.Node) -> int:
        plain = text.replace("_", "")
        # Python writes and reads only so many digits; a number that no float holds can be computed with nowhere.
        if len(plain) <= 400:
            number = int(text, 0) if text[:2] in ("0x", "0o") else int(plain)
            if abs(number) <= sys.float_info.max:
                return number
        raise _refusal(f"must be at most {sys.float_info.max:.1e}, got a number of {len(plain)} digits", node)

    def text(self, node: yaml.ScalarNode) -> str:
        """Return text, which an escape such as \\ud800 may have given half of a character."""
        found = str(self.construct_scalar(node))
        if any("\ud800" <= letter <= "\udfff" for letter in found):
            raise _refusal(f"must be whole characters, got {found[:40]!r}", node)
        return found

    def unknown(self, node: yaml.Node) -> Any:
        raise _refusal(f"no such tag here: {node.tag.replace('tag:yaml.org,2002:', '!!')}; leave it out", node)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, every alias counted as what it stands for."""
    if id(node) not in known:
        known[id(node)] = 1  # what an alias inside its own anchor counts; the constructor refuses it
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _refusal(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def _keep(tags: str) -> Any:
    """Return a test for the tags of YAML's own types with these names."""
    names = {f"tag:yaml.org,2002:{name}" for name in tags.split()}
    return lambda tag: tag in names


# No dates, sets or binary: nothing in a configuration is one.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, rule) for tag, rule in rules if _keep("null merge")(tag)]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if _keep("null seq map")(tag)
}
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.text)
_Loader.add_constructor(None, _Loader.unknown)


class _Dumper(yaml.SafeDumper):
    """Writes what `load` reads back equal; what any YAML reader takes for something else is a quoted word."""


for _name, _rule, _starts in (
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, _NUMBER_STARTS),
    ("float", _FLOAT, _NUMBER_STARTS),
):
    _tag = f"tag:yaml.org,2002:{_name}"
    _Loader.add_implicit_resolver(_tag, _rule, _starts)
    _Loader.add_constructor(_tag, _Loader.scalar)
    _Dumper.add_implicit_resolver(_tag, _rule, _starts)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says.

    Raises:
        NotationError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{where}{error.problem or 'not YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlError(f"not YAML ({str(error).splitlines()[0] if str(error) else 'too deep'})") from None


def parse_value(text: str) -> Any:
    """Return what a command-line value means: a number, a boolean, null, a list, else the text as it is."""
    try:
        found = parse_yaml(text)
    except YamlError:
        return text
    opening = text.strip()[:1]
    if isinstance(found, str):
        return found if opening in ("'", '"') else text  # my #1.txt has no comment in it
    if isinstance(found, list | dict):
        return found if opening in ("[", "{") else text
    return text if found is None and text.strip().lower() not in ("null", "~") else found


def dump_yaml(tree: Any) -> str:
    """Return a tree as YAML, keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _float(dumper: yaml.SafeDumper, number: float) -> yaml.Node:
    text = repr(number) if math.isfinite(number) else {"inf": ".inf", "-inf": "-.inf"}.get(str(number), ".nan")
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # other YAML readers take 1e-05 for text
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _str(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    odd = not text.isprintable()  # \x85 and its like end a line unless they are escaped
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _str)

"""The lines of the keys of a YAML file, for messages about files that other programs have defined."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from hpo.errors import Problem

Path = tuple[str | int, ...]


def key_lines(text: str) -> dict[Path, int]:
    """Return the line of each key and list item of a valid YAML document, by its path."""
    document = YAML(typ="safe", pure=True).compose(text)
    return {} if document is None else dict(_lines(document, ()))


def _lines(node: Node, path: Path) -> Iterator[tuple[Path, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield (*path, str(key.value)), key.start_mark.line + 1
            yield from _lines(value, (*path, str(key.value)))
    elif isinstance(node, SequenceNode):
        for i, value in enumerate(node.value):
            yield (*path, i), value.start_mark.line + 1
            yield from _lines(value, (*path, i))


@dataclass(frozen=True)
class Notes:
    """What of a file has no exact counterpart, each with its line.

    source: name of the file. lines: see `key_lines`.
    """

    source: str
    lines: dict[Path, int]
    texts: list[str] = field(default_factory=list)
    inner: Path = ()  # the mapping of the file that holds the sweep, if it is not the whole file

    def add(self, path: Path, text: str) -> None:
        """Add a note about the key at a path."""
        self.texts.append(f"{self.place(path)}: {'.'.join(map(str, path))}: {text}")

    def problem(self, path: Path, rule: str) -> Problem:
        """Return the error that the key at a path breaks a rule."""
        return Problem(f"{self.place(path)}: {'.'.join(map(str, path))}: {rule}")

    def place(self, path: Path) -> str:
        """Return the file and the line of a path, or of the nearest key around it."""
        full = (*self.inner, *path)
        line = next((self.lines[full[:n]] for n in range(len(full), 0, -1) if full[:n] in self.lines), 1)
        return f"{self.source}:{line}"

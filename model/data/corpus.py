"""The text that models train on: one section a corpus, each yields its raw documents in a fixed order."""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from model import cache
from model.data.corpus_base import NotEmpty, Splitting
from model.data.hub import Hub, hacker_news_titles
from model.data.tables import TABLES, lines, texts
from model.data.text_files import local, matching, passages, public, read_text
from model.errors import ConfigError


class PythonDocs(Splitting):
    """Docstrings and language reference of the running Python: English on every machine, no download."""

    name: Literal["python-docs"] = "python-docs"

    def files(self) -> list[Path]:
        """Return the sources of the standard library, which hold the language reference too."""
        skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
        root = Path(sysconfig.get_path("stdlib"))
        found = [p for p in sorted(root.rglob("*.py")) if not skipped & set(p.relative_to(root).parts)]
        if not found:
            raise ConfigError(f"data.name: python-docs needs the library's sources, there are none in {root}")
        return found

    def documents(self) -> Iterator[str]:
        """Yield every docstring, then every topic of the language reference."""
        for path in self.files():
            yield from _docstrings(path)
        from pydoc_data.topics import topics

        yield from (topics[key] for key in sorted(topics))


class Names(Splitting):
    """32,033 first names, one a document."""

    name: Literal["names"] = "names"

    def files(self) -> list[Path]:
        """Return the one file, downloaded where $HPO_DATA has none."""
        url = "https://raw.githubusercontent.com/karpathy/makemore/988aa59/names.txt"
        known = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
        return [public(["names.txt"], url, known)]

    def documents(self) -> Iterator[str]:
        """Yield the names in the file's order."""
        return lines(self.files(), "data")


class TinyShakespeare(Splitting):
    """1.1 MB of Shakespeare's plays; a document is a passage of about 1,000 characters."""

    name: Literal["tiny-shakespeare"] = "tiny-shakespeare"

    def files(self) -> list[Path]:
        """Return the one file, downloaded where $HPO_DATA has none."""
        url = "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a/data/tinyshakespeare/input.txt"
        known = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
        return [public(["tiny-shakespeare.txt"], url, known)]

    def documents(self) -> Iterator[str]:
        """Yield passages in the order of the text."""
        return passages(read_text(self.files()[0], "data"))


class HackerNews(Splitting):
    """Titles of Hacker News posts, one a document."""

    name: Literal["hacker-news"] = "hacker-news"

    def files(self) -> list[Path]:
        """Return the one file, written from the hub's data set where $HPO_DATA has none."""
        found = local(["hacker-news.txt", "hacker-news.txt.gz"])
        return [found or hacker_news_titles(cache.cache_root() / "downloads" / "hacker-news.txt")]

    def documents(self) -> Iterator[str]:
        """Yield the titles in the file's order."""
        return lines(self.files(), "data")


class _Files(Splitting):
    """A corpus of the user's own files."""

    path: NotEmpty
    """File, or glob of files, relative to the current folder; names ending in .gz are unpacked."""

    def files(self) -> list[Path]:
        """Return the files in the order of their names."""
        return matching(self.path)


class Text(_Files):
    """The user's own running text; a document is a passage of about 1,000 characters."""

    name: Literal["text"] = "text"

    def documents(self) -> Iterator[str]:
        """Yield the passages of each file."""
        for text in texts(self.files(), "data.path"):
            yield from passages(text)


class Lines(_Files):
    """The user's own text, one document a line."""

    name: Literal["lines"] = "lines"

    def documents(self) -> Iterator[str]:
        """Yield the lines of each file."""
        return lines(self.files(), "data.path")


class Table(_Files):
    """One column of the user's own csv, tsv, jsonl or parquet files, one document a row."""

    name: Literal["table"] = "table"

    column: NotEmpty
    """Name of the column that holds the text."""

    def documents(self) -> Iterator[str]:
        """Yield the cells of the column; a missing one is empty."""
        for path in self.files():
            kind = Path(path.name.removesuffix(".gz")).suffix
            if kind not in TABLES:
                raise ConfigError(f"data.path: must end in {', '.join(TABLES)}, got {path}")
            yield from TABLES[kind](path, self.column)


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modules keep invalid escapes
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # distributions add templates that are not Python
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text


Corpus = Annotated[
    PythonDocs | Names | TinyShakespeare | HackerNews | Hub | Text | Lines | Table, Field(discriminator="name")
]

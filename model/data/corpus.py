"""The text that models train on: one section a corpus, each yields its raw documents in a fixed order."""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from model import cache
from model.data.corpus_base import CorpusBase, NotEmpty
from model.data.hub import Hub, write_hacker_news_titles
from model.data.tables import TABLE_READERS, read_lines, read_texts
from model.data.text_files import local_file, matching_files, passages, public_file, read_text
from model.errors import ConfigError


class PythonDocs(CorpusBase):
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
            yield from _read_docstrings(path)
        from pydoc_data.topics import topics

        yield from (topics[key] for key in sorted(topics))


class Names(CorpusBase):
    """32,033 first names, one a document."""

    name: Literal["names"] = "names"

    def files(self) -> list[Path]:
        """Return the one file, downloaded where $HPO_DATA has none."""
        url = "https://raw.githubusercontent.com/karpathy/makemore/988aa59/names.txt"
        known = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
        return [public_file(["names.txt"], url, known)]

    def documents(self) -> Iterator[str]:
        """Yield the names in the file's order."""
        return read_lines(self.files(), "data")


class TinyShakespeare(CorpusBase):
    """1.1 MB of Shakespeare's plays; a document is a passage of about 1,000 characters."""

    name: Literal["tiny-shakespeare"] = "tiny-shakespeare"

    def files(self) -> list[Path]:
        """Return the one file, downloaded where $HPO_DATA has none."""
        url = "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a/data/tinyshakespeare/input.txt"
        known = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
        return [public_file(["tiny-shakespeare.txt"], url, known)]

    def documents(self) -> Iterator[str]:
        """Yield passages in the order of the text."""
        return passages(read_text(self.files()[0], "data"))


class HackerNews(CorpusBase):
    """Titles of Hacker News posts, one a document."""

    name: Literal["hacker-news"] = "hacker-news"

    def files(self) -> list[Path]:
        """Return the one file, written from the hub's data set where $HPO_DATA has none."""
        found = local_file(["hacker-news.txt", "hacker-news.txt.gz"])
        return [found or write_hacker_news_titles(cache.cache_root() / "downloads" / "hacker-news.txt")]

    def documents(self) -> Iterator[str]:
        """Yield the titles in the file's order."""
        return read_lines(self.files(), "data")


class _UserFiles(CorpusBase):
    """A corpus of the user's own files."""

    path: NotEmpty
    """File, or glob of files, relative to the current folder; names ending in .gz are unpacked."""

    def files(self) -> list[Path]:
        """Return the files in the order of their names."""
        return matching_files(self.path)


class Text(_UserFiles):
    """The user's own running text; a document is a passage of about 1,000 characters."""

    name: Literal["text"] = "text"

    def documents(self) -> Iterator[str]:
        """Yield the passages of each file."""
        for text in read_texts(self.files(), "data.path"):
            yield from passages(text)


class Lines(_UserFiles):
    """The user's own text, one document a line."""

    name: Literal["lines"] = "lines"

    def documents(self) -> Iterator[str]:
        """Yield the lines of each file."""
        return read_lines(self.files(), "data.path")


class Table(_UserFiles):
    """One column of the user's own csv, tsv, jsonl or parquet files, one document a row."""

    name: Literal["table"] = "table"

    column: NotEmpty
    """Name of the column that holds the text."""

    def documents(self) -> Iterator[str]:
        """Yield the cells of the column; a missing one is empty."""
        for path in self.files():
            kind = Path(path.name.removesuffix(".gz")).suffix
            if kind not in TABLE_READERS:
                raise ConfigError(f"data.path: must end in {', '.join(TABLE_READERS)}, got {path}")
            yield from TABLE_READERS[kind](path, self.column)


def _read_docstrings(path: Path) -> Iterator[str]:
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

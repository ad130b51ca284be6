"""Corpora: each configuration section yields the raw documents of one corpus in a fixed order.

To add a corpus, write a subclass of CorpusBase with a `name`, a `files` method and a `documents` method, and add it to
the union `Corpus` at the end of this file.
"""

import ast
import functools
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from model import cache
from model.data.compression import unpacked_name
from model.data.corpus_base import CorpusBase, NotEmpty
from model.data.hub import Hub, write_hacker_news_titles
from model.data.tables import TABLE_READERS, read_lines, read_texts
from model.data.text_files import local_file, matching_files, passages, public_file, read_text
from model.errors import ConfigError


class PythonDocs(CorpusBase):
    """Docstrings of the standard library and language reference of the installed Python. Needs no download."""

    name: Literal["python-docs"] = "python-docs"

    def files(self) -> list[Path]:
        """Return the source files of the standard library, which include the language reference.

        Raises:
            ConfigError: the sources are not installed.
        """
        root = Path(sysconfig.get_path("stdlib"))
        paths = _standard_library(root)
        if not paths:
            raise ConfigError(f"data.name: python-docs needs the sources of the standard library, got none in {root}")
        return list(paths)

    def documents(self) -> Iterator[str]:
        """Yield every docstring, then every topic of the language reference."""
        for path in self.files():
            yield from _read_docstrings(path)
        from pydoc_data.topics import topics

        yield from (topics[key] for key in sorted(topics))


@functools.cache  # a worker asks several times, and the files of the running Python stay
def _standard_library(root: Path) -> tuple[Path, ...]:
    """Return the source files below a folder in a fixed order, without tests and installed packages."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    paths = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skipped]
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    return tuple(sorted(paths))


class Names(CorpusBase):
    """32,033 first names. Each name is a document. Source: github.com/karpathy/makemore."""

    name: Literal["names"] = "names"

    def files(self) -> list[Path]:
        """Return the file; download it unless $HPO_DATA or the cache contains it."""
        url = "https://raw.githubusercontent.com/karpathy/makemore/988aa59/names.txt"
        sha256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
        return [public_file(["names.txt"], url, sha256)]

    def documents(self) -> Iterator[str]:
        """Yield the names in the order of the file."""
        return read_lines(self.files(), "data")


class TinyShakespeare(CorpusBase):
    """1.1 MB of Shakespeare's plays. Each passage of about 1,000 characters is a document.

    Source: github.com/karpathy/char-rnn.
    """

    name: Literal["tiny-shakespeare"] = "tiny-shakespeare"

    def files(self) -> list[Path]:
        """Return the file; download it unless $HPO_DATA or the cache contains it."""
        url = "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a/data/tinyshakespeare/input.txt"
        sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
        return [public_file(["tiny-shakespeare.txt"], url, sha256)]

    def documents(self) -> Iterator[str]:
        """Yield passages in the order of the text."""
        return passages(read_text(self.files()[0], "data"))


class HackerNews(CorpusBase):
    """Titles of Hacker News posts. Each title is a document.

    Source: huggingface.co/datasets/julien040/hacker-news-posts.
    """

    name: Literal["hacker-news"] = "hacker-news"

    def files(self) -> list[Path]:
        """Return the file; download the dataset from the Hub unless $HPO_DATA or the cache contains the file."""
        path = local_file(["hacker-news.txt", "hacker-news.txt.gz"])
        return [path or write_hacker_news_titles(cache.cache_root() / "downloads" / "hacker-news.txt")]

    def documents(self) -> Iterator[str]:
        """Yield the titles in the order of the file."""
        return read_lines(self.files(), "data")


class _UserFiles(CorpusBase):
    """A corpus of your own files."""

    path: NotEmpty
    """Path of a file, or a glob pattern that matches files, relative to the current folder. Files that are compressed
    by gzip, xz, lzma or bzip2 are decompressed, and zip files that hold one file."""

    def files(self) -> list[Path]:
        """Return the files, sorted by name."""
        return matching_files(self.path)


class _PlainFiles(_UserFiles):
    """A corpus of your own files, of which everything is text."""

    def remark(self) -> str:
        """Return a remark about the first file that is a table by its name."""
        tables = [path for path in self.files() if {suffix.lower() for suffix in path.suffixes} & {*TABLE_READERS}]
        if not tables:
            return ""
        return (
            f"data.name: trains on the notation of {tables[0]}, its quotes and column names too; "
            "data.name=table with data.column=NAME trains on the text of one column"
        )


class Text(_PlainFiles):
    """Your own text files. Each passage of about 1,000 characters is a document."""

    name: Literal["text"] = "text"

    def documents(self) -> Iterator[str]:
        """Yield the passages of each file."""
        for text in read_texts(self.files(), "data.path"):
            yield from passages(text)


class Lines(_PlainFiles):
    """Your own text files. Each line is a document."""

    name: Literal["lines"] = "lines"

    def documents(self) -> Iterator[str]:
        """Yield the lines of each file."""
        return read_lines(self.files(), "data.path")


class Table(_UserFiles):
    """One column of your own csv, tsv, jsonl, json or parquet files. Each row is a document. A tsv has no quotes."""

    name: Literal["table"] = "table"
    has_rows: ClassVar[bool] = True

    column: NotEmpty
    """Name of the column that contains the text. In jsonl, json and parquet files also a path into lists and mappings,
    such as `messages.0.content`; `messages.*.content` joins the texts of all messages by line feeds."""

    def documents(self) -> Iterator[str]:
        """Yield the values of the column; a missing value is empty.

        Raises:
            ConfigError: a file is not a table, or does not have the column.
        """
        for path in self.files():
            extension = Path(unpacked_name(path)).suffix
            if extension not in TABLE_READERS:
                raise ConfigError(
                    f"data.path: must end in {', '.join(TABLE_READERS)}, got {path}; save it as such a file"
                )
            yield from TABLE_READERS[extension](path, self.column)


def _read_docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modules contain invalid escape sequences
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # distributions include templates that are not valid Python
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text


Corpus = Annotated[
    PythonDocs | Names | TinyShakespeare | HackerNews | Hub | Text | Lines | Table, Field(discriminator="name")
]

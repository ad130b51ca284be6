"""The text that models train on: one section a corpus, each yields its raw documents in a fixed order."""

import ast
import difflib
import json
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from model import files
from model.section import ConfigError, Section

# at most a third each, so that three documents always suffice for three splits
HeldOut = Annotated[float, Field(ge=0, le=0.33)]
NotEmpty = Annotated[str, Field(min_length=1)]


class Splitting(Section):
    """How a corpus becomes training, validation and test text; shared by all corpora."""

    layout: Literal["stream", "documents"] = "stream"
    """What a row of a batch is: a window of the endless text, or one document from its beginning."""

    val_fraction: HeldOut = 0.04
    """Fraction of the documents held out for validation, at least one."""

    test_fraction: HeldOut = 0.04
    """Fraction of the documents held out for the final test, at least one."""

    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draw that assigns documents to splits."""

    max_documents: Annotated[int, Field(ge=0)] = 0
    """Number of distinct documents to keep, drawn at random by split_seed; 0 keeps all."""


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
        return [files.public(["names.txt"], url, known)]

    def documents(self) -> Iterator[str]:
        """Yield the names in the file's order."""
        return _lines(self.files(), "data")


class TinyShakespeare(Splitting):
    """1.1 MB of Shakespeare's plays; a document is a passage of about 1,000 characters."""

    name: Literal["tiny-shakespeare"] = "tiny-shakespeare"

    def files(self) -> list[Path]:
        """Return the one file, downloaded where $HPO_DATA has none."""
        url = "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a/data/tinyshakespeare/input.txt"
        known = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
        return [files.public(["tiny-shakespeare.txt"], url, known)]

    def documents(self) -> Iterator[str]:
        """Yield passages in the order of the text."""
        return files.passages(files.read_text(self.files()[0], "data"))


class HackerNews(Splitting):
    """Titles of Hacker News posts, one a document."""

    name: Literal["hacker-news"] = "hacker-news"

    def files(self) -> list[Path]:
        """Return the one file, written from the hub's data set where $HPO_DATA has none."""
        found = files.local(["hacker-news.txt", "hacker-news.txt.gz"])
        return [found or _titles_from_hub(files.cache_root() / "downloads" / "hacker-news.txt")]

    def documents(self) -> Iterator[str]:
        """Yield the titles in the file's order."""
        return _lines(self.files(), "data")


class _Files(Splitting):
    """A corpus of the user's own files."""

    path: NotEmpty
    """File, or glob of files, relative to the current folder; names ending in .gz are unpacked."""

    def files(self) -> list[Path]:
        """Return the files in the order of their names."""
        return files.matching(self.path)


class Text(_Files):
    """The user's own running text; a document is a passage of about 1,000 characters."""

    name: Literal["text"] = "text"

    def documents(self) -> Iterator[str]:
        """Yield the passages of each file."""
        for text in _texts(self.files(), "data.path"):
            yield from files.passages(text)


class Lines(_Files):
    """The user's own text, one document a line."""

    name: Literal["lines"] = "lines"

    def documents(self) -> Iterator[str]:
        """Yield the lines of each file."""
        return _lines(self.files(), "data.path")


class Table(_Files):
    """One column of the user's own csv, tsv, jsonl or parquet files, one document a row."""

    name: Literal["table"] = "table"

    column: NotEmpty
    """Name of the column that holds the text."""

    def documents(self) -> Iterator[str]:
        """Yield the cells of the column; a missing one is empty."""
        for path in self.files():
            kind = Path(path.name.removesuffix(".gz")).suffix
            if kind not in _TABLES:
                raise ConfigError(f"data.path: must end in {', '.join(_TABLES)}, got {path}")
            yield from _TABLES[kind](path, self.column)


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


def _texts(paths: list[Path], key: str) -> Iterator[str]:
    """Yield the text of each file; an empty one among others is no mistake."""
    empty = True
    for path in paths:
        text = files.read_text(path, key)
        empty = empty and not text.strip()
        yield text
    if empty:
        raise ConfigError(f"{key}: empty file: {', '.join(map(str, paths))}")


def _lines(paths: list[Path], key: str) -> Iterator[str]:
    for text in _texts(paths, key):
        yield from text.split("\n")  # splitlines() would also cut at U+2028 and form feeds


def _titles_from_hub(target: Path) -> Path:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(
            "data.name: hacker-news needs the file $HPO_DATA/hacker-news.txt (or .txt.gz), one title a line, "
            "or the data set library: pip install 'hpo[hub]'"
        ) from None
    source = "julien040/hacker-news-posts"
    try:
        titles: Iterable[Any] = load_dataset(source, split="train")["title"]
    except Exception as error:  # the library raises dozens of types for "not reachable"
        raise ConfigError(
            f"data: cannot load {source}: {error}; or put the file at $HPO_DATA/hacker-news.txt"
        ) from None
    return files.write_whole(target, "\n".join(" ".join(str(t).split()) for t in titles).encode())


def _separated(path: Path, column: str, separator: str) -> Iterator[str]:
    import pandas as pd

    text = next(_texts([path], "data.path"))
    if not text.strip():
        raise ConfigError(f"data.path: empty file: {path}")
    try:
        _check_column(path, column, pd.read_csv(StringIO(text), sep=separator, nrows=0).columns.tolist())
        # keep_default_na: "NA" and "null" are words
        # index_col: else a row with a cell too many shifts every column by one
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except pd.errors.ParserWarning:
        raise ConfigError(f"data.path: not a table: {path}: a row has more cells than there are columns") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ConfigError(f"data.path: not a table: {path}: {error}") from None
    yield from table[column]


def _csv(path: Path, column: str) -> Iterator[str]:
    return _separated(path, column, ",")


def _tsv(path: Path, column: str) -> Iterator[str]:
    return _separated(path, column, "\t")


def _jsonl(path: Path, column: str) -> Iterator[str]:
    rows = []
    for number, line in enumerate(_lines([path], "data.path"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise ConfigError(f"data.path: line {number} is not JSON: {path}: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"data.path: line {number} must be a JSON object: {path}")
        rows.append(row)
    _check_column(path, column, list(dict.fromkeys(key for row in rows for key in row)))
    yield from (_cell(row.get(column)) for row in rows)


def _parquet(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("data.path: parquet needs pyarrow: pip install 'hpo[parquet]'") from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
        _check_column(path, column, table.schema_arrow.names)
        cells = table.read(columns=[column]).column(column).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"data.path: not a parquet file: {path}: {error}") from None
    yield from map(_cell, cells)


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _check_column(path: Path, column: str, columns: list[str]) -> None:
    if column in columns:
        return
    near = difflib.get_close_matches(column, columns, n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    raise ConfigError(f"data.column: no column {column!r} in {path}{hint} columns: {', '.join(columns)}")


_TABLES = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}

Corpus = Annotated[
    PythonDocs | Names | TinyShakespeare | HackerNews | Text | Lines | Table, Field(discriminator="name")
]

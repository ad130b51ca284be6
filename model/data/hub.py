"""Data sets of the Hugging Face hub: fetched once by its library, afterwards read from a file of our own."""

import json
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from model import cache
from model.data import tables
from model.data.corpus_base import CorpusBase, NotEmpty
from model.data.text_files import local_file
from model.errors import ConfigError
from model.section import Count

HUB_URL = "https://huggingface.co/datasets/"
HUB_EXTRA = "the data set library: pip install 'hpo[hub]'"


class Hub(CorpusBase):
    """One column of a data set of the Hugging Face hub, one document a row, pinned to a revision."""

    name: Literal["hub"] = "hub"

    path: NotEmpty
    """Data set as owner/name, or a local folder of files in the same form."""

    subset: str = ""
    """Name of a subset, which the hub calls a configuration; empty: the default one."""

    revision: NotEmpty
    """Commit or tag; of a local folder a word of your own, another word has it read again."""

    split: NotEmpty = "train"
    """Split of the data set that documents are taken from, its other splits are not used."""

    column: NotEmpty = "text"
    """Name of the column that holds the text."""

    first: Count = 100_000
    """Number of rows to take, from the first on."""

    cut: Annotated[int, Field(ge=0)] = 0
    """Characters of a document that are kept, from its beginning; 0 keeps all."""

    def files(self) -> list[Path]:
        """Return the one file, written from the data set where neither $HPO_DATA nor the cache has it."""
        asked = self.model_dump(include=set(Hub.model_fields) - set(CorpusBase.model_fields))
        name = f"hub-{sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]}.jsonl"
        if found := local_file([name]):
            return [found]
        target = cache.cache_root() / "downloads" / name
        with cache.locked(target):  # another process may write it while we wait
            return [local_file([name]) or cache.write_whole(target, self._fetched(name))]

    def documents(self) -> Iterator[str]:
        """Yield the texts in the data set's order."""
        texts = tables.read_jsonl(self.files()[0], self.column)
        return (text[: self.cut or None] for text in islice(texts, self.first))

    def _fetched(self, name: str) -> Iterator[bytes]:
        """Yield the rows as JSON lines that have the one column."""
        remedy = f'put the documents at $HPO_DATA/{name}, a line {{"{self.column}": "the text"}} each'
        source = self.path if Path(self.path).is_dir() else f"{HUB_URL}{self.path}"
        number = 0
        for number, row in enumerate(self._rows(source, remedy), 1):
            tables.check_column(source, self.column, list(row))
            text = row[self.column]
            if not isinstance(text, str | None):
                kind = type(text).__name__
                raise ConfigError(f"data.column: must hold text, got {kind} in row {number} of {source}")
            line = json.dumps({self.column: (text or "")[: self.cut or None]}, ensure_ascii=True)
            yield f"{line}\n".encode()
        if not number:
            raise ConfigError(f"data.split: split {self.split} of {source} has no rows")

    def _rows(self, source: str, remedy: str) -> Iterator[dict[str, Any]]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise ConfigError(f"data.name: hub needs {HUB_EXTRA}; or {remedy}") from None
        try:
            rows = load_dataset(
                self.path,
                self.subset or None,
                revision=self.revision,
                split=self.split,
                streaming=True,
                cache_dir=str(cache.cache_root() / "downloads" / "datasets"),  # its locks; rows are not kept there
            )
            yield from islice(rows, self.first)
        except Exception as error:  # the library raises dozens of types for "not there" and "not reachable"
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"data: cannot load {source} at revision {self.revision}: {reason}; or {remedy}"
            ) from None


def write_hacker_news_titles(target: Path) -> Path:
    """Write the titles of Hacker News posts to a file, one a line."""
    here = "$HPO_DATA/hacker-news.txt"
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(
            f"data.name: hacker-news needs the file {here} (or .txt.gz), one title a line, or {HUB_EXTRA}"
        ) from None
    source = "julien040/hacker-news-posts"
    try:
        titles = [" ".join(str(title).split()) for title in load_dataset(source, split="train")["title"]]
    except Exception as error:  # as above
        raise ConfigError(f"data: cannot load {HUB_URL}{source}: {error}; or put the file at {here}") from None
    return cache.write_whole(target, ["\n".join(titles).encode()])

"""Datasets of the Hugging Face Hub. The `datasets` library downloads one once, into a JSON lines file in the cache."""

import json
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from model import cache
from model.data import tables
from model.data.cells import cell_text, lookup
from model.data.corpus_base import CorpusBase, NotEmpty
from model.data.text_files import local_file
from model.errors import ConfigError
from model.section import Count

HUB_URL = "https://huggingface.co/datasets/"
HUB_EXTRA = "the datasets library: pip install 'hpo[hub]'"


class Hub(CorpusBase):
    """One column of a dataset of the Hugging Face Hub at a fixed revision. Each row is a document."""

    name: Literal["hub"] = "hub"
    has_rows: ClassVar[bool] = True

    path: NotEmpty
    """Name of the dataset as owner/name, or a local folder that the datasets library can load."""

    subset: str = ""
    """Name of the subset, which the Hub also calls a configuration. Empty selects the default subset."""

    revision: NotEmpty
    """Commit or tag of the dataset. For a local folder: any text; the folder is read again when the text changes."""

    split: NotEmpty = "train"
    """Split of the dataset from which documents are taken. The other splits of the dataset are not used."""

    column: NotEmpty = "text"
    """Name of the column that contains the text, or a path into it, as in a table."""

    first: Count = 100_000
    """Number of rows to use, starting at the first row."""

    cut: Annotated[int, Field(ge=0)] = 0
    """Largest length of a document in characters; the rest of a longer document is dropped. 0 keeps whole documents."""

    def files(self) -> list[Path]:
        """Return the file with the rows; download it unless $HPO_DATA or the cache contains it."""
        fields = self.model_dump(include=set(Hub.model_fields) - set(CorpusBase.model_fields))
        name = f"hub-{sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]}.jsonl"
        if path := local_file([name]):
            return [path]
        target = cache.cache_root() / "downloads" / name
        with cache.locked(target):  # another process may have written the file in the meantime
            return [local_file([name]) or cache.write_whole(target, self._download(name))]

    def documents(self) -> Iterator[str]:
        """Yield the texts in the order of the dataset."""
        texts = tables.read_jsonl(self.files()[0], self.column)
        return (text[: self.cut or None] for text in islice(texts, self.first))

    def _download(self, name: str) -> Iterator[bytes]:
        """Yield the rows as JSON lines that contain only the text column."""
        remedy = f'put the documents at $HPO_DATA/{name}, one line {{"{self.column}": "the text"}} per document'
        source = self.path if Path(self.path).is_dir() else f"{HUB_URL}{self.path}"
        number = 0
        for number, row in enumerate(self._rows(source, remedy), 1):
            if (value := lookup(row, self.column)) is None and self.column.partition(".")[0] not in row:
                tables.check_column(source, self.column, list(row))
            text = cell_text(value, self.column, f"row {number} of {source}")
            if not isinstance(value, str | None):
                kind = type(value).__name__
                raise ConfigError(f"data.column: must hold text, got {kind} in row {number} of {source}")
            line = json.dumps({self.column: text[: self.cut or None]}, ensure_ascii=True)
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
                cache_dir=str(
                    cache.cache_root() / "downloads" / "datasets"
                ),  # for locks of the library; rows are not stored there
            )
            yield from islice(rows, self.first)
        except Exception as error:  # the library raises dozens of types for missing and unreachable datasets
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"data: cannot load {source} at revision {self.revision}: {reason}; or {remedy}"
            ) from None


def write_hacker_news_titles(target: Path) -> Path:
    """Download the titles of Hacker News posts to a file with one title per line.

    Raises:
        ConfigError: the dataset cannot be loaded.
        CacheError: the file cannot be written.
    """
    local_path = "$HPO_DATA/hacker-news.txt"
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(
            f"data.name: hacker-news needs the file {local_path} (or .txt.gz) with one title per line, or {HUB_EXTRA}"
        ) from None
    source = "julien040/hacker-news-posts"
    try:
        titles = [" ".join(str(title).split()) for title in load_dataset(source, split="train")["title"]]
    except Exception as error:  # as above
        raise ConfigError(f"data: cannot load {HUB_URL}{source}: {error}; or put the file at {local_path}") from None
    return cache.write_whole(target, ["\n".join(titles).encode()])

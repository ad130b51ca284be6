"""A study in a storage, by name: what the methods of `hpo.Study` have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.api.errors import python_errors
from hpo.storage.engine import open_readonly
from hpo.storage.retry import OpenStorage
from hpo.storage.url import masked_url

if TYPE_CHECKING:
    from hpo.storage.store import Store


class StudyHandle:
    """The name of a study, the URL of its storage, and the folder of its runs. It holds no connection."""

    def __init__(self, name: str, storage: str, out: Path) -> None:
        self.name, self.storage, self.out = name, storage, out

    def __repr__(self) -> str:
        return f"Study({self.name!r}, storage={masked_url(self.storage)!r})"

    @contextmanager
    def _read(self) -> Iterator[tuple[OpenStorage, Snapshot]]:
        """Open the storage and read the study."""
        with python_errors(), open_readonly(self.storage) as store:
            yield store, read_snapshot(store, self.name)

    @contextmanager
    def _write(self) -> Iterator["Store"]:
        """Open the storage to change the study."""
        from hpo.storage.store import open_store  # imports Optuna

        with python_errors(), open_store(self.storage) as store:
            yield store

"""A fixture for tests whose subject is the creation of tables."""

import pytest

from tests.support.tables import TABLES


@pytest.fixture
def created_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Create the tables of each new storage, instead of copying a template."""
    monkeypatch.delenv(TABLES, raising=False)

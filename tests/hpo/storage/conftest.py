"""The tests of this folder create the tables of every storage, as users do."""

import pytest

from tests.support.tables import TABLES


@pytest.fixture(autouse=True)
def created_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TABLES, raising=False)

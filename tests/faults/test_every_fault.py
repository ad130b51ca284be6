"""Whatever happens to a study, it ends whole: every fault of the table on every storage that can meet it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scene import Scene
from tests.faults.table import FAULTS, Fault
from tests.support.cases import exhaustive


def cases() -> Iterator[object]:
    """Yield every fault with every storage that can meet it.

    Faults of the storage itself happen on both storages in every run, the others on one of the two in turn.
    """
    for n, fault in enumerate(FAULTS):
        kinds = [kind for kind in ("sqlite", "postgres") if kind not in fault.not_on]
        for kind in kinds:
            always = fault.of_storage or kind == kinds[n % len(kinds)]
            yield (pytest.param if always else exhaustive)(fault, kind, id=f"{fault.name}, {kind}")


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> Iterator[Scene]:
    if kind == "sqlite":
        scene = Scene(tmp_path, f"sqlite:///{tmp_path}/hpo.db")
    else:
        server = request.getfixturevalue("postgres")
        scene = Scene(tmp_path, server.url(server.database("with_tables")), server)
    database = scene.database
    try:
        with scene.witness:
            yield scene
    finally:
        scene.close()
        if scene.server:
            scene.server.sql(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.mark.parametrize(("fault", "kind"), list(cases()))
def test_study_ends_whole_and_says_why_whatever_happens(fault: Fault, kind: str, scene: Scene) -> None:
    fault.provoke(scene)
    scene.finish()
    scene.check()
    assert fault.words <= scene.happened


def test_every_fault_stands_in_the_document_with_its_words() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert [fault.name for fault in FAULTS if fault.name not in rows] == []
    assert [fault.name for fault in FAULTS if not all(f"`{word}`" in rows[fault.name] for word in fault.words)] == []

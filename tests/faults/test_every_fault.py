"""After every fault, on every storage on which it can occur, a study ends complete and correct."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scene import Scene
from tests.faults.table import FAULTS, Fault
from tests.support.cases import exhaustive


def cases() -> Iterator[object]:
    """Yield every fault with every storage on which it can occur. A default test run has one of the two in turn."""
    for n, fault in enumerate(FAULTS):
        kinds = [kind for kind in ("sqlite", "postgres") if kind not in fault.not_on]
        for kind in kinds:
            yield (pytest.param if kind == kinds[n % len(kinds)] else exhaustive)(
                fault, kind, id=f"{fault.name}, {kind}"
            )


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
def test_study_ends_complete_after_a_fault_and_names_its_cause(fault: Fault, kind: str, scene: Scene) -> None:
    fault.provoke(scene)
    scene.finish()
    scene.check()
    assert fault.event_types <= scene.types_seen


def test_every_fault_is_in_the_documentation_with_its_event_types() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert [fault.name for fault in FAULTS if fault.name not in rows] == []
    assert [
        fault.name
        for fault in FAULTS
        if not all(f"`{event_type}`" in rows[fault.name] for event_type in fault.event_types)
    ] == []

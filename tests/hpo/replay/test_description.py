from pathlib import Path

import pytest

from hpo.replay.description import data_file, read_description

WORLDS = Path(__file__).parents[3] / "bench" / "worlds"


@pytest.mark.parametrize("path", sorted(WORLDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_descriptions_of_the_measured_worlds_are_valid(path: Path) -> None:
    assert read_description(path).file


def test_data_lies_in_the_folder_of_the_environment_or_beside_the_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "curves.yaml").write_text("{file: runs.csv, values: 'v{rung}'}")
    (tmp_path / "runs.csv").write_text("v1\n1.0\n")
    description = read_description(tmp_path / "curves.yaml")
    monkeypatch.delenv("HPO_CURVES", raising=False)
    assert data_file(description, tmp_path / "curves.yaml") == tmp_path / "runs.csv"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("HPO_CURVES", str(elsewhere))
    assert data_file(description, tmp_path / "curves.yaml") == tmp_path / "runs.csv"
    (elsewhere / "runs.csv").write_text("v1\n2.0\n")
    assert data_file(description, tmp_path / "curves.yaml") == elsewhere / "runs.csv"

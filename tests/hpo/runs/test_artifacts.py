"""The folder of attached files, whose ids the storage holds."""

import io
from pathlib import Path

import pytest
from optuna.artifacts.exceptions import ArtifactNotFound

from hpo.runs.artifacts import ArtifactFolder, is_artifact_id


@pytest.mark.parametrize("artifact_id", ["../outside", "{folder}/outside", "", ".", "a/b", "a\0b", "x", "0" * 100])
def test_stored_id_that_is_no_uuid_names_no_file(tmp_path: Path, artifact_id: str) -> None:
    artifact_id = artifact_id.format(folder=tmp_path)
    (tmp_path / "outside").write_text("kept")
    (tmp_path / "files").mkdir()
    files = ArtifactFolder(tmp_path / "files")
    for use in (files.open_reader, files.remove, lambda name: files.write(name, io.BytesIO(b"changed"))):
        with pytest.raises(ArtifactNotFound):
            use(artifact_id)
    assert not is_artifact_id(artifact_id)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["files", "outside"]
    assert (tmp_path / "outside").read_text() == "kept"


def test_file_is_written_read_and_removed_by_its_uuid(tmp_path: Path) -> None:
    files = ArtifactFolder(tmp_path)
    files.write("0a1b-2c3d", io.BytesIO(b"text"))
    with files.open_reader("0a1b-2c3d") as file:
        assert file.read() == b"text"
    files.remove("0a1b-2c3d")
    with pytest.raises(ArtifactNotFound):
        files.open_reader("0a1b-2c3d")

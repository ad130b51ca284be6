"""The folder of the files that `hpo report` and visitors of the dashboard attach to studies and trials."""

import re
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

_ID = re.compile(r"[0-9a-fA-F-]{1,64}")


class ArtifactFolder(FileSystemArtifactStore):
    """Files by their id, a UUID. The storage holds the ids, and everyone who can write the storage can change them, so
    other ids name no file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file. Raises ArtifactNotFound."""
        return super().open_reader(_checked(artifact_id))

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a file. Raises ArtifactNotFound if the id is not valid."""
        super().write(_checked(artifact_id), content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove a file. Raises ArtifactNotFound."""
        super().remove(_checked(artifact_id))


def is_artifact_id(artifact_id: object) -> bool:
    """Return whether this may be the id of a file."""
    return isinstance(artifact_id, str) and _ID.fullmatch(artifact_id) is not None


def _checked(artifact_id: str) -> str:
    if not is_artifact_id(artifact_id):
        raise ArtifactNotFound(f"not the id of a file: {artifact_id!r:.80}")
    return artifact_id

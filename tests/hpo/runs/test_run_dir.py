"""A run folder belongs to one study."""

from pathlib import Path

import pytest

from hpo.errors import WorkFailed
from hpo.runs.run_dir import FolderGuard, claim_folder, study_folder

ONE, OTHER = "1" * 32, "2" * 32


def test_second_study_of_a_name_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert claim_folder(tmp_path, "a", ONE) == tmp_path / "a"
    assert claim_folder(tmp_path, "a", OTHER, is_new=True) == tmp_path / "a-22222222"
    assert study_folder(tmp_path, "a", ONE) == claim_folder(tmp_path, "a", ONE) == tmp_path / "a"
    assert study_folder(tmp_path, "a", OTHER) == claim_folder(tmp_path, "a", OTHER) == tmp_path / "a-22222222"


def test_folder_of_an_earlier_version_belongs_to_the_study_that_is_continued_and_not_to_a_new_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "a" / "trials" / "0000").mkdir(parents=True)
    assert study_folder(tmp_path, "a", "") == tmp_path / "a"
    assert claim_folder(tmp_path, "a", OTHER, is_new=True) == tmp_path / "a-22222222"
    assert study_folder(tmp_path, "a", ONE) == tmp_path / "a"
    assert claim_folder(tmp_path, "a", ONE) == tmp_path / "a"
    assert study_folder(tmp_path, "a", OTHER) == tmp_path / "a-22222222"


def test_guard_notices_a_removed_and_a_replaced_folder_but_no_folder_that_was_never_marked(tmp_path: Path) -> None:
    folder = claim_folder(tmp_path, "a", ONE)
    guard = FolderGuard(folder, ONE)
    guard.check()
    (folder / ".study").write_text(OTHER)
    with pytest.raises(WorkFailed, match="the run folder was removed while the study ran"):
        guard.check()
    (folder / ".study").unlink()
    with pytest.raises(WorkFailed, match="a: the run folder was removed while the study ran"):
        guard.check()
    FolderGuard(folder, ONE).check()

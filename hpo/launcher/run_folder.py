"""Open the run folder of a study, and notice that it or the storage was removed."""

import time
from pathlib import Path

from hpo.config.yaml import dump_yaml
from hpo.console import say
from hpo.errors import Problem, WorkFailed
from hpo.queue.stored_study import StoredStudy
from hpo.runs.run_dir import FolderGuard, claim_folder, write_file
from hpo.study.stored import study_file_tree

# Seconds that the removal of a folder may take.
REMOVAL_S = 1.0


def open_folder(out: Path, stored: StoredStudy) -> FolderGuard:
    """Claim the run folder of a study, write the study file into it, and print notes about the study.

    Raises:
        Problem: the folder cannot be written.
    """
    study, folder = stored.study, claim_folder(out, stored.first_name, stored.uid, stored.is_new)
    notes = list(stored.notes)
    if folder != out / stored.first_name:
        notes.append(f"{out / stored.first_name} belongs to another study; this study uses {folder}")
    for note in notes:
        say(f"note: {note}")
    try:
        write_file(folder / "study.yaml", dump_yaml(study_file_tree(study.spec(), study.file.budget.model_dump())))
    except WorkFailed as failed:  # nothing has run yet, so the folder is a mistake of the user
        raise Problem(str(failed)) from None
    return FolderGuard(folder, stored.uid)


def check_still_there(stored: StoredStudy, guard: FolderGuard) -> None:
    """Check that nobody has removed the file of the storage, the study or its run folder.

    Raises:
        StorageError: the file of the storage was removed or replaced.
        WorkFailed: the study or its run folder was removed.
    """
    stored.store.check_file()
    try:
        guard.check()
    except WorkFailed:
        time.sleep(REMOVAL_S)  # if a folder is being removed that holds both, the loss of the storage matters more
        stored.store.check_file()
        raise

"""What a study needs so that its runs can differ in their seed."""

from hpo.study.spec import StudyFile


def seed_remedy(file: StudyFile) -> str:
    """Return what a study needs so that its runs can differ in their seed."""
    return "{seed} in the command" if file.command is not None else "a config that has a field run.seed or seed"

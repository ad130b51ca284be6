"""Names of studies that become names of folders."""

from hpo.errors import Problem


def check_folder_name(study: str) -> None:
    """Check that a study has a name under which its folder is inside the folder of all runs.

    Everyone who can write the storage can rename a study, to "../other" for example.

    Raises:
        Problem: the name is not the name of one folder.
    """
    if study in ("", ".", "..") or "/" in study or "\0" in study:
        raise Problem(
            f"study {study!r:.80}: must have the name of a folder in --out, not empty, '.' or '..', and without '/'; "
            "rename the study in `hpo dashboard`"
        )

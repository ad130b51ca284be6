"""Which files a user may have written over."""

import re
from contextlib import suppress
from pathlib import Path

_STUDY_KEYS = re.compile(rb"^(space|arms|claims|base):", re.MULTILINE)
_EXPORTED = re.compile(rb"^provenance:", re.MULTILINE)


def output_problem(path: Path) -> str | None:
    """Return the rule that an output file breaks, None for a new file and for the result of an earlier export."""
    try:
        if not path.exists():
            return None
    except OSError as error:  # no file system accepts the path, for example because a name has 300 letters
        return f"{error.strerror}, got {str(path)!r:.60}"
    if not path.is_file():
        return f"must be the name of a file, got the {'folder' if path.is_dir() else 'device'} {str(path)!r}"
    with suppress(OSError), path.open("rb") as file:
        text = file.read(2**20)
        if text.startswith(b"SQLite format 3"):
            return f"must not replace the database {str(path)!r}; use another name"
        settings = path.suffix in (".yaml", ".yml") or _STUDY_KEYS.search(text)
        if settings and text.strip() and not _EXPORTED.search(text):
            return (
                f"must be a new file or the result of an earlier export, got {str(path)!r}, which may be a study file; "
                "use another name"
            )
    return None

"""The rule for names of new studies. A name is also the name of a folder and a word of printed commands."""

import unicodedata

from hpo.errors import Problem

MAX_CHARACTERS, MAX_BYTES = 100, 200  # a file system allows 255 bytes, and `hpo confirm` appends to the name
RULE = "must be a name of letters, digits, '-', '_' and '.' that starts with a letter, a digit or '_'"


def name_problem(name: str) -> str | None:
    """Return the rule that the name of a new study breaks, None for a valid name.

    Studies of earlier versions may have other names, and continue under them.
    """
    if len(name) > MAX_CHARACTERS or len(name.encode("utf-8", "replace")) > MAX_BYTES:
        return f"must be a name of at most {MAX_CHARACTERS} characters and {MAX_BYTES} bytes"
    # Marks, because some languages write vowels as marks, and macOS writes é as e and a mark.
    known = all(character in "-_.+" or unicodedata.category(character)[0] in "LNM" for character in name)
    if not known or not name or name[0] in "-.+" or unicodedata.category(name[0])[0] == "M":
        return RULE
    if name.endswith((".yaml", ".yml")):
        return "must be a name, not the name of a file"
    return None


def check_name(name: str, source: str) -> None:
    """Check the name of a new study; source: the file from which it takes the name.

    Raises:
        Problem: the name is not valid.
    """
    if problem := name_problem(name):
        raise Problem(f"{source}: the name of the file {problem}, got {name!r:.60}; rename the file")

"""`hpo doctor`: print what is wrong with a storage, this machine and the files of studies, and repair it."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpo.commands.doctor_checks import check_all
from hpo.commands.doctor_files import CheckResult
from hpo.console import Format, print_records, say, show
from hpo.errors import Problem, StorageError

OLD_STATES = {"ok": "fine", "warning": "look", "error": "wrong", "fixed": "mended"}  # the words of version 0.1
STATES_VARIABLE = "HPO_DOCTOR_STATES"


def run_doctor(url: str, only: str | None, out: Path, fix: bool, format: Format) -> int:
    """Print the result of every check and return the exit status.

    only: name of the only study to check, None for all. The status is 1 if an error remains, and 4 if the storage does
    not answer.
    """
    states = _state_words(format)
    results, status = [], 0
    try:
        for result in repaired(check_all(url, only, out), fix):
            results.append(result)
            status = status or int(result.state == "error")
    except StorageError as error:
        remedy = "start the server, or use another --storage" if url.startswith("postgres") else "use another --storage"
        results.append(CheckResult("storage", "error", str(error), "" if remedy in str(error) else remedy))
        status = 4
    if format is not Format.table:
        records = [
            {"check": r.check, "state": states[r.state], "found": r.message, "remedy": r.remedy} for r in results
        ]
        print_records(records, format)
        return status
    for r in results:
        remedy = f"; {r.remedy}" if r.remedy and r.state != "fixed" else ""
        show(f"{r.state:7} {r.check:12} {r.message}{remedy}")
    return status


def _state_words(format: Format) -> Mapping[str, str]:
    """Return the word of each state: with HPO_DOCTOR_STATES=0.1 the word of version 0.1, for programs that read it.

    Raises:
        Problem: the environment variable has another value.
    """
    words = {state: state for state in OLD_STATES}
    setting = os.environ.get(STATES_VARIABLE, "")
    if setting not in ("", "0.1", "0.2"):
        raise Problem(f"{STATES_VARIABLE}: must be 0.1 or 0.2, got {setting!r}")
    if format is Format.table or setting == "0.2":
        return words
    if setting == "0.1":
        say(f"note: version 0.3.0 removes {STATES_VARIABLE}=0.1; read the states {', '.join(words)} instead")
        return OLD_STATES
    changes = ", ".join(f"{old} is now {new}" for new, old in OLD_STATES.items())
    say(f"note: {changes}; {STATES_VARIABLE}=0.1 prints the old states, {STATES_VARIABLE}=0.2 hides this note")
    return words


def repaired(results: Iterator[CheckResult], fix: bool) -> Iterator[CheckResult]:
    """Yield the results unchanged, or with `fix` after the safe repairs."""
    for result in results:
        if fix and result.repair is not None:
            result.repair()
            yield result._replace(state="fixed", repair=None)
        else:
            yield result

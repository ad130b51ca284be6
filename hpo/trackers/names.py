"""The trackers by name, whether their packages are installed, and how long a launch waits for them at its end."""

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec

from hpo.errors import Problem

WAIT = "HPO_TRACK_WAIT"  # environment variable: seconds that a launch waits at its end for the last values
NONE = "none"  # turns off the trackers of the study file


def chosen_trackers(option: Sequence[str], stated: Sequence[str], source: str) -> list[str]:
    """Return the trackers of a launch, and check that their packages are installed.

    option: --track. stated: the key track of the study. source: where the study comes from.

    Raises:
        Problem: a package is missing, --track none is combined with others, or HPO_TRACK_WAIT is wrong.
    """
    names, origin = list(dict.fromkeys(option or stated)), "--track" if option else f"{source}: track"
    if NONE in names:
        if len(names) > 1:
            raise Problem(f"--track: none must be alone, got {', '.join(names)}")
        return []
    check_installed(names, origin)
    wait_seconds()
    return names


def wait_seconds() -> float:
    """Return how long a launch waits at its end for its trackers: 30 s, or the value of HPO_TRACK_WAIT.

    Raises:
        Problem: the value is not a number of at least 0.
    """
    text = os.environ.get(WAIT, "30")
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise Problem(f"{WAIT}: must be a number of seconds of at least 0, got {text!r:.60}")


def check_installed(names: Iterable[str], origin: str) -> None:
    """Check that the packages of trackers are installed. None of them is imported.

    Raises:
        Problem: one is missing.
    """
    if missing := [name for name in names if not _is_installed(name)]:
        extras = ",".join(missing)
        raise Problem(
            f"{origin}: needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}, which this Python does not "
            f"have; `pip install 'hpo[{extras}]'` installs what is missing"
        )


def _is_installed(name: str) -> bool:
    with suppress(ImportError, ValueError):
        spec = find_spec(name)
        # A folder such as ./wandb, in which the client stores runs, is a package without a file.
        return spec is not None and spec.origin is not None
    return False

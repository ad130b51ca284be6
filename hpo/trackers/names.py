"""The trackers by name, and whether their packages are installed."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec

from hpo.errors import Problem

NONE = "none"  # turns off the trackers of the study file


def chosen_trackers(option: Sequence[str], stated: Sequence[str], source: str) -> list[str]:
    """Return the trackers of a launch, and check that their packages are installed.

    option: --track. stated: the key track of the study. source: where the study comes from.

    Raises:
        Problem: a package is missing, or --track none is combined with others.
    """
    names, origin = list(dict.fromkeys(option or stated)), "--track" if option else f"{source}: track"
    if NONE in names:
        if len(names) > 1:
            raise Problem(f"--track: none must be alone, got {', '.join(names)}")
        return []
    check_installed(names, origin)
    return names


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

"""What `module:name` in a study file stands for."""

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.config.addresses import current_address
from hpo.config.validation import nearest
from hpo.errors import Problem


def import_target(target: str, key: str) -> Any:
    """Return what module:name stands for.

    Raises:
        Problem: it cannot be imported.
    """
    module, colon, name = current_address(target).partition(":")
    if not colon or not module or not name:
        raise Problem(f"{key}: must be module:name, got {target!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not look in the folder it is called from
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Problem(f"{key}: no module {error.name!r} here or installed, got {target!r}") from None
    except (Exception, SystemExit) as error:  # whatever a module of the user's own does when it is imported
        raise Problem(
            f"{key}: {module} cannot be imported, {type(error).__name__}: {error}{error_location(error)}"
        ) from None
    if not hasattr(found, name):
        raise Problem(f"{key}: module {module} has no {name!r}{nearest(name, dir(found))}")
    return getattr(found, name)


def model_class(target: str, key: str) -> type[BaseModel]:
    """Return the configuration class that module:Class stands for.

    Raises:
        Problem: it cannot be imported, or is no class that can be made.
    """
    found = import_target(target, key)
    if not isinstance(found, type) or not issubclass(found, BaseModel) or found is BaseModel:
        raise Problem(f"{key}: must be a pydantic model, got {target}")
    return found


def error_location(error: BaseException) -> str:
    """Return file and line where an exception arose, as ", x.py line 3"."""
    if isinstance(error, SyntaxError):
        return ""  # its text says so
    *_, last = traceback.extract_tb(error.__traceback__)
    return f" ({Path(last.filename).name} line {last.lineno})"

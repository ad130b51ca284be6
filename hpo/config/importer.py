"""Import the object that `module:name` in a study file names."""

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.config.addresses import current_address
from hpo.config.validation import nearest
from hpo.errors import Interruption, Problem


def import_target(target: str, key: str) -> Any:
    """Return the object at the address module:name.

    key: name of the key in messages.

    Raises:
        Problem: the object cannot be imported.
    """
    module, colon, name = current_address(target).partition(":")
    if not colon or not module or not name:
        raise Problem(f"{key}: must be module:name, got {target!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # console scripts do not have the current folder on sys.path
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Problem(f"{key}: no module {error.name!r} in the current folder or installed, got {target!r}") from None
    except (Interruption, KeyboardInterrupt):  # Ctrl-C, for example while the module imports torch
        raise
    except BaseException as error:  # code of the user may raise anything, SystemExit too
        raise Problem(
            f"{key}: {module} cannot be imported, {type(error).__name__}: {error}{error_location(error)}"
        ) from None
    if not hasattr(imported, name):
        raise Problem(f"{key}: module {module} has no {name!r}{nearest(name, dir(imported))}")
    return getattr(imported, name)


def model_class(target: str, key: str) -> type[BaseModel]:
    """Return the configuration class at the address module:Class.

    key: name of the key in messages.

    Raises:
        Problem: the class cannot be imported, or it is not a pydantic model.
    """
    imported = import_target(target, key)
    if not isinstance(imported, type) or not issubclass(imported, BaseModel) or imported is BaseModel:
        raise Problem(f"{key}: must be a pydantic model, got {target}")
    return imported


def error_location(error: BaseException) -> str:
    """Return the file and line at which an exception was raised, as " (x.py line 3)"."""
    if isinstance(error, SyntaxError):
        return ""  # its message has the line
    *_, last = traceback.extract_tb(error.__traceback__)
    return f" ({Path(last.filename).name} line {last.lineno})"

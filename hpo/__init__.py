"""Hyperparameter search over training runs. This package does not import torch.

Importing it loads nothing else: a training script imports it for `hpo.current_trial()` alone. The other names load
their modules when they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo.api.study import Study, list_studies
    from hpo.errors import Problem, StorageError
    from hpo.trial import current_trial

__all__ = ["Problem", "StorageError", "Study", "current_trial", "list_studies"]

_NAMES = {  # public name -> module
    "Problem": "hpo.errors",
    "StorageError": "hpo.errors",
    "Study": "hpo.api.study",
    "current_trial": "hpo.trial",
    "list_studies": "hpo.api.study",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'hpo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})

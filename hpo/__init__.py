"""Hyperparameter search over training runs. This package does not import torch.

Importing it loads nothing else: a training script imports it for `hpo.current_trial()` alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo.trial import current_trial

__all__ = ["current_trial"]

_NAMES = {"current_trial": "hpo.trial"}  # public name -> module


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'hpo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_NAMES[name]), name)

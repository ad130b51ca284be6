"""Read the definition of a study that Python gives: the path of a study file, or its content as a mapping."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.errors import Problem
from hpo.study.load import load_study, study_of_tree, with_limits
from hpo.study.names import name_problem
from hpo.study.spec import Study


def read_definition(
    definition: str | Path | Mapping[str, Any],
    name: str | None,
    overrides: Sequence[str],
    budget: Mapping[str, Any],
    seed: int | None,
) -> Study:
    """Return a valid study. name: of a study that is given as a mapping. Other arguments are as of `load_study`.

    Raises:
        Problem: the definition is invalid; the message names every problem.
    """
    if not isinstance(definition, str | Path | Mapping):
        raise Problem(f"definition: must be the path of a study file or a mapping, got {definition!r:.60}")
    if not isinstance(definition, Mapping):
        if name is not None:
            raise Problem(f"name: must be omitted with a study file, whose name is that of the study, got {name!r:.60}")
        return load_study(str(definition), overrides, budget, seed)
    if name is None:
        raise Problem("name: required for a study that is given as a mapping")
    if problem := name_problem(name):
        raise Problem(f"name: {problem}, got {name!r:.60}")
    tree = {key: _address(key, value) for key, value in definition.items()}
    return study_of_tree(with_limits(tree, budget, seed), name, f"study {name}", overrides)


def _address(key: str, value: Any) -> Any:
    """Return module:name for a function or a class that a study names, other values unchanged.

    Raises:
        Problem: a worker, which is another process, cannot import it.
    """
    if key not in ("train", "config") or not callable(value):
        return value
    module, name = value.__module__, value.__qualname__
    if module == "__main__" or "." in name:
        raise Problem(
            f"{key}: must be in a module, because every worker imports it in a process of its own, got {name} of "
            f"{'this notebook or script' if module == '__main__' else module}; write it to a file, such as train.py "
            f"(in a notebook, with %%writefile train.py), and use 'train:{value.__name__}'"
        )
    return f"{module}:{name}"

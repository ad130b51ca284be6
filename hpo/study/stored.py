"""Convert studies to and from the form in which the storage and study files hold them."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.config.permission import COMMAND, check_permission
from hpo.config.validation import error_messages
from hpo.errors import Problem
from hpo.study.config_class import config_class
from hpo.study.earlier import complete_spec
from hpo.study.spec import DEFAULT_CONFIG, SEARCH_KEYS, Study, StudyFile


def study_file_tree(spec: Mapping[str, Any], budget: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a study file that recreates a study, including overrides of its base.

    spec: the result of `Study.spec`. budget: the current budget, which may have changed since.
    """
    arms = spec.get("arms")
    omitted = {"name", "rung_tokens", "closed", "about", *(SEARCH_KEYS if arms else ("arms", "seeds", "equal"))}
    omitted |= {"rungs"} if spec["config"] == DEFAULT_CONFIG or spec.get("command") is not None else set()
    tree = {key: value for key, value in spec.items() if key not in omitted}
    if spec.get("command") is not None:
        tree = {key: value for key, value in tree.items() if key not in COMMAND}
        tree["base"] = _without_null(spec["base"])
    if objectives := tree.pop("objectives", None):
        tree["objective"] = list(objectives)
    tree["budget"] = {
        key: value for key, value in budget.items() if value is not None and not (arms and key == "trials")
    }
    return {
        key: value for key, value in tree.items() if value not in ({}, [], None) or (key == "baseline" and not arms)
    }


def study_from_spec(spec: Mapping[str, Any], name: str | None = None) -> Study:
    """Return the study from the result of `Study.spec`.

    name: name of the study in the storage, None for its first name. A study may be renamed after its creation.

    Raises:
        Problem: the user has not permitted the code that the study names, or a value is not valid.
    """
    name = name or str(spec.get("name"))
    source = f"study {name}"
    spec = complete_spec(spec)
    check_permission(source, spec)
    tree = {key: value for key, value in spec.items() if key not in ("name", "rung_tokens", "closed")}
    if tree.get("command") is not None:
        tree.pop("rungs", None)
    kind: type[BaseModel] = StudyFile
    try:
        file = StudyFile.model_validate(tree)
        kind = config_class(file, f"{source}: config")
        return Study(name, source, file, kind(**file.base))
    except ValidationError as error:
        raise Problem(*(f"{source}: {line}" for line in error_messages(error, kind))) from None


def _without_null(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base of a command without the parameters that only a trial sets."""
    values = {key: _without_null(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    return {key: value for key, value in values.items() if value not in (None, {})}

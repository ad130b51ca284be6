"""The configuration that `hpo train` trains: that of its file, with --set and --rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.commands.train_output import without_result
from hpo.config.importer import model_class
from hpo.config.validation import error_messages
from hpo.errors import Problem
from hpo.storage.url import default_url
from hpo.study.scale import scale_fields
from hpo.study.spec import DEFAULT_CONFIG
from hpo.transfer.carry import SEARCHED, TRANSFER, CarryRequest, carry_file, read_found
from hpo.transfer.lookup import in_storage
from hpo.transfer.rule import Rule


@dataclass(frozen=True)
class FileRequest:
    """The options of `hpo train` that change the configuration. storage: URL, None for the default."""

    overrides: Sequence[str]
    rule: Rule | None
    storage: str | None


def configuration_to_train(
    path: Path, tree: Mapping[str, Any], provenance: Mapping[str, Any], request: FileRequest
) -> tuple[BaseModel, dict[str, Any]]:
    """Return the configuration to train and its provenance. What does not carry over to its scale is printed.

    tree, provenance: the content of the file.

    Raises:
        Problem: the file, --set or --rule is not valid.
    """
    kind = model_class(str(provenance.get("config", DEFAULT_CONFIG)), "provenance.config")
    try:
        config = kind.model_validate(dict(tree))
    except ValidationError as error:
        raise Problem(*(f"{path}: {text}" for text in error_messages(error, kind))) from None
    file = read_found(path, config, provenance)
    study = provenance.get("study")
    lookup = in_storage(default_url(request.storage), None if study is None else str(study))
    carried, record = carry_file(
        file, provenance, CarryRequest(what(path, provenance), request.overrides, request.rule, lookup)
    )
    if record is None:
        return carried, dict(provenance)
    origin = without_result(provenance) | {TRANSFER: record}
    assert file.found is not None
    return carried, origin | {SEARCHED: provenance.get(SEARCHED) or scale_fields(file.found)}


def what(path: Path, provenance: Mapping[str, Any]) -> str:
    """Return where a configuration comes from, in words."""
    if "study" not in provenance or "trial" not in provenance:
        return str(path)
    return f"trial {provenance['trial']} of {provenance['study']}"

"""Where the files of a study are on this machine. Places may differ between machines, because the data has a hash."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpo.config.overrides import apply_overrides, parse_overrides
from hpo.errors import Problem
from hpo.study.fingerprint import PLACES
from hpo.study.spec import DEFAULT_CONFIG, Study
from model.section import flat, updated


def at_places(study: Study, overrides: Sequence[str]) -> Study:
    """Return a study of the storage with the places that --set gives.

    Raises:
        Problem: --set gives another field, which is part of the definition of the study.
    """
    if not overrides:
        return study
    allowed = PLACES if study.file.config == DEFAULT_CONFIG else ()
    if others := [path for path in parse_overrides(overrides) if path not in allowed]:
        raise Problem(
            f"--set {others[0]}: must be omitted, because study {study.name} exists and its definition cannot change"
            + (f"; only {', '.join(allowed)} can be set" if allowed else "")
        )
    base = apply_overrides(study.base, overrides)
    return replace(study, base=updated(base, absolute_places(flat(base))))


def place_options(study: Study) -> list[str]:
    """Return the options of `hpo worker` that set the paths of a study's files on this machine."""
    if study.file.config != DEFAULT_CONFIG:
        return []
    fields = flat(study.base)
    given = [(path, fields[path]) for path in PLACES if fields.get(path) is not None]
    return [word for path, value in given for word in ("--set", f"{path}={json.dumps(value)}")]


def absolute_places(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return data.path as an absolute path, by dotted field; {} if it is the name of a dataset on a hub.

    Workers may start in another folder.
    """
    path = fields.get("data.path")
    if path is None or (fields["data.name"] == "hub" and not Path(path).is_dir()):
        return {}
    return {"data.path": str(Path(path).absolute())}

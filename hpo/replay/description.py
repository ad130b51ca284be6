"""Describe a file of recorded learning curves: a small YAML file says which columns hold what."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hpo.config.validation import error_messages
from hpo.config.yaml import YamlError, parse_yaml
from hpo.errors import Problem
from hpo.search.ranges import Space
from model.section import Count, Positive, Section

FOLDER = "HPO_CURVES"  # environment variable that names the folder of recorded curves
SUFFIXES = (".csv", ".jsonl", ".npz")


class Arrays(Section):
    """The names of the arrays of an NPZ file."""

    values: str
    """Learning curves: runs x marks, or tables x runs x marks."""
    params: str
    """Hyperparameters: runs x columns, or tables x runs x columns."""
    columns: str
    """Names of the columns of `params`."""
    tables: str | None = None
    """Names of the tables, if `values` has several."""


class CurvesFile(Section):
    """The keys of a description of recorded curves."""

    file: str
    """CSV, JSONL or NPZ file, also with .gz: a path relative to the folder that HPO_CURVES names, or else to the folder
    of the description."""
    space: Space = Field(default_factory=dict)
    """The hyperparameters and their ranges, as in a study file. Runs outside are left out. Without a space, the runs
    are replayed in random order, and no sampler can be compared."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of a hyperparameter, where its name differs from the path in the space."""
    values: str | None = None
    """Columns of a table with one row per run: a name with {rung} for the number of the mark, such as val_{rung}."""
    value: str | None = None
    """Column of the value in a table with one row per run and step. It requires `step` and `run`."""
    step: str | None = None
    """Column of the step: updates, tokens or any unit that grows evenly."""
    run: str | tuple[str, ...] = ()
    """Column, or columns, that tell the runs of a table with one row per step apart."""
    total: str | None = None
    """Column of the last step of a run. A run that ends earlier has no known result. Default: every run is complete."""
    configuration: str | tuple[str, ...] = ()
    """Column, or columns, that are equal for runs which differ only in their seed. Default: the hyperparameters."""
    arrays: Arrays | None = None
    """The arrays of an NPZ file."""
    table: str | None = None
    """Which of the tables of an NPZ file to read."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Column -> value, or list of values, of the rows to read. Default: all rows."""
    rungs: Count | None = None
    """Number of rungs of a simulated run, evenly spaced over the recorded marks. Required with `value`. Default: one
    rung per mark."""
    first_mark: Annotated[int, Field(ge=0, le=1)] = 1
    """Number of the first recorded mark. 0: the first value of an NPZ file is that before the first step, which is no
    rung."""
    tokens: Positive | None = None
    """Tokens of a complete run. Default: tokens are counted in complete runs."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Whether a smaller or a larger value is better."""

    @model_validator(mode="after")
    def _one_layout(self) -> Self:
        given = [key for key in ("values", "value", "arrays") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError("must have one of values, value and arrays; use values for one row per run")
        if self.value is not None and (self.step is None or not self.run or self.rungs is None):
            raise ValueError("value requires step, run and rungs; add them")
        if self.values is not None and "{rung}" not in self.values:
            raise ValueError(f"values must contain {{rung}}, got {self.values!r}")
        return self


def read_description(path: Path) -> CurvesFile:
    """Return a description of recorded curves.

    Raises:
        Problem: the file cannot be read or is invalid; the message names every problem.
    """
    try:
        tree = parse_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise Problem(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, YamlError) as error:
        raise Problem(f"{path}: {error}") from None
    if not isinstance(tree, Mapping):
        raise Problem(f"{path}: must be a mapping with the keys {', '.join(CurvesFile.model_fields)}")
    try:
        return CurvesFile.model_validate(tree)
    except ValidationError as error:
        raise Problem(*(f"{path}: {line}" for line in error_messages(error, CurvesFile))) from None


def data_file(description: CurvesFile, path: Path) -> Path:
    """Return the file of a description that was read from `path`.

    Raises:
        Problem: there is no such file, or its type is not supported.
    """
    plain = description.file.removesuffix(".gz")
    if not plain.endswith(SUFFIXES):
        raise Problem(f"{path}: file: must end in {', '.join(SUFFIXES)} or one of these with .gz, got {plain!r}")
    folders = [Path(folder) for folder in [os.environ.get(FOLDER, "")] if folder]
    for folder in [*folders, path.parent]:
        if (folder / description.file).is_file():
            return folder / description.file
    places = " or ".join(str(folder) for folder in [*folders, path.parent])
    hint = "" if folders else f"; set {FOLDER} to the folder that holds it"
    raise Problem(f"{path}: file: must exist in {places}, got {description.file!r}{hint}")

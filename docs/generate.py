"""Write the generated pages of the documentation, and the tables of docs/search.md.

python docs/generate.py            write the pages
python docs/generate.py --check    exit with 1 where a page is not what would be written
"""

import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.drawing import GENERATED, drawing, packages
from docs.search_tables import with_tables
from hpo.cli.reference import Parameter, commands
from hpo.config.yaml import parse_yaml
from hpo.evidence.claims.schema import ArithmeticTest, ArmsTest, ClaimedEffect, LedgerClaim, ReportedEvidence
from hpo.replay.description import Arrays, CurvesFile
from hpo.search.prior import ChoicePrior, Prior
from hpo.search.ranges import Choices, Range
from hpo.study.spec import Budget, Limits, StudyFile
from model.config import TrainConfig

DOCS = Path(__file__).parent

ARMS = """## `arms`

A study file with `arms` and `seeds` instead of a `space` compares configurations. Every arm runs once with every seed,
and `hpo launch` prints the paired differences from the first arm:

```yaml
# Does the warmup matter here?
base: {from: unet-small}
arms: {none: {schedule.warmup: 0.0}, short: {schedule.warmup: 0.05}, long: {schedule.warmup: 0.2}}
seeds: [1, 2, 3, 4, 5]
```"""
LEDGER = """# Claims file

`hpo claims --ledger FILE` tests the claims of a YAML file. Each claim has an id such as C001-02, in which 001 is the
number of the report. This file holds one claim:

```yaml
claims:
  C001-01:
    claim: A learning rate of 1e-2 instead of 1e-3 lowers the loss.
    report: S001
    effect: {text: about 5 percent, value: -0.05, unit: share}
    known: {how: [measured], n: 1}
    test:
      base: microgpt-small
      equal: tokens
      metric: val_loss
      arms: {slow: {optimizer.lr: 1e-3}, fast: {optimizer.lr: 1e-2}}
```

The first arm is the reference. `hpo check FILE` checks a claims file. The comments at the top of `studies/claims.yaml`
state how the effect and the verdict follow from the runs."""
CURVES = """# Description of recorded curves

`hpo replay --curves FILE` reads the curves that a YAML file describes. [Samplers and pruners](search.md) has
examples."""
EXIT_STATUS = """| exit status | meaning |
|---|---|
| 0 | success |
| 1 | a run or a worker failed, a file cannot be written, or `hpo doctor` found an error |
| 2 | an option, a file or a request is invalid, or a newer version of hpo uses the study |
| 3 | no trial within the limits of the study is complete, so there is no result |
| 4 | the storage is unreachable, not writable or not supported |
| 130, 143 | the command was stopped by SIGINT (Ctrl-C) or SIGTERM |"""
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
SYMBOLS = {Gt: ">", Ge: "≥", Lt: "<", Le: "≤"}


def cell(text: str) -> str:
    """Return text as one cell of a Markdown table, arXiv numbers as links."""
    text = re.sub(r"\bNone\b", "`null`", " ".join(text.split()).replace("|", "\\|"))
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, Annotated wrappers removed."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in alternatives(part)]
    return [annotation]


def type_name(annotation: Any) -> str:
    """Return a type as a user writes it in YAML."""
    names = []
    for member in alternatives(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if origin is Literal:
            names += [f"`{value}`" for value in arguments]
        elif member in (type(None), None):
            names.append("null")
        elif origin is dict:
            names.append(f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}")
        elif origin in (list, tuple):
            names.append(f"list of {type_name(arguments[0])}")
        elif isinstance(member, type) and issubclass(member, BaseModel):
            names.append("mapping")
        else:
            words = {int: "integer", float: "number", str: "string", bool: "`true` or `false`", Any: "value"}
            names.append(words.get(member, getattr(member, "__name__", str(member))))
    return ", ".join(dict.fromkeys(names))


def constraints(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Yield the bounds of a type, those inside optional types included."""
    yield from metadata
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        for item in more:
            yield from item.metadata if isinstance(item, FieldInfo) else [item]
        yield from constraints(inner)
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from constraints(member)


def bounds(field: FieldInfo) -> str:
    """Return the bounds of a field, such as "> 0, ≤ 1"."""
    texts = []
    for item in constraints(field.annotation, tuple(field.metadata)):
        for kind, symbol in SYMBOLS.items():
            if isinstance(item, kind):
                value = getattr(item, kind.__name__.lower())
                texts.append(f"{symbol} {'2^63' if value == 2**63 else f'{value:g}'}")
        if isinstance(item, MinLen) and item.min_length:
            texts.append(f"at least {item.min_length} long")
    return ", ".join(dict.fromkeys(texts))


def default(field: FieldInfo) -> str:
    """Return the default of a field as YAML, "required" where it has none."""
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else f"`{in_yaml(value)}`"


def in_yaml(value: Any) -> str:
    """Return a value in YAML's flow style."""
    if isinstance(value, BaseModel):
        name = {"name": value.name} if hasattr(value, "name") else {}
        return in_yaml(name | value.model_dump(exclude_unset=True))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {in_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(section: type[BaseModel], prefix: str = "", skip: tuple[str, ...] = ()) -> str:
    """Return a section's fields as a Markdown table."""
    rows = ["| field | type | bounds | default | meaning |", "|---|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if name in skip or not field.description:
            continue
        cells = (f"`{prefix}{name}`", type_name(field.annotation), bounds(field), default(field), field.description)
        rows.append("| " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""


def described(kind: type[BaseModel]) -> str:
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", inspect.cleandoc(kind.__doc__ or ""))


def components(section: type[BaseModel], key: str, prefix: str) -> Iterator[str]:
    """Yield one part for each component that a field may name."""
    kinds = [k for k in alternatives(section.model_fields[key].annotation) if isinstance(k, type)]
    chosen = getattr(section.model_fields[key].get_default(call_default_factory=True), "name", None)
    if chosen is not None:
        yield f"Default: `{chosen}`."
    shared = set.intersection(*(set(kind.model_fields) for kind in kinds)) - {"name"} if len(kinds) > 1 else set()
    same = tuple(
        name for name in kinds[0].model_fields
        if name in shared and len({row(kind, name) for kind in kinds}) == 1
    )  # fmt: skip
    if same and len(kinds) > 1:
        others = tuple(name for name in kinds[0].model_fields if name not in same)
        yield f"Fields that every `{key}` has:\n\n{table(kinds[0], prefix, others)}"
    for kind in kinds:
        name = kind.model_fields["name"].default if "name" in kind.model_fields else None
        heading = f"### `{prefix}name: {name}`\n\n" if name else ""
        yield f"{heading}{described(kind)}\n\n{table(kind, prefix, ('name', *same))}"


def row(kind: type[BaseModel], name: str) -> tuple[str, ...]:
    field = kind.model_fields[name]
    return type_name(field.annotation), bounds(field), default(field), field.description or ""


def configuration() -> str:
    """Return docs/configuration.md."""
    parts = [
        "# Configuration reference",
        "A **study file** describes a search, and a **training configuration** describes one training run. Both are "
        "YAML files. The `base` of a study file is a training configuration, and `hpo export` writes a complete one. "
        "Every field of a training configuration has a dotted path, such as `optimizer.lr`. The path is the same in a "
        "`space`, in `--set optimizer.lr=3e-4`, in the dashboard and in exported files.",
        "# Study file",
        table(StudyFile),
        ARMS,
        "## `budget`",
        described(Budget),
        table(Budget, "budget."),
        "## `limits`",
        described(Limits),
        table(Limits, "limits."),
        "## `space`",
        "Each key is the dotted path of a field. Its value is a range or a list of choices.",
        f"### Range\n\n{described(Range)}",
        table(Range),
        f"### Choices\n\n{described(Choices)}",
        table(Choices),
        f"### Prior of a range\n\n{described(Prior)}",
        table(Prior, "prior."),
        f"### Prior of choices\n\n{described(ChoicePrior)}",
        table(ChoicePrior, "prior."),
        "## `sampler`",
        *components(StudyFile, "sampler", "sampler."),
        "## `pruner`",
        *components(StudyFile, "pruner", "pruner."),
        "# Training configuration",
    ]
    for key in TrainConfig.model_fields:
        parts += [f"## `{key}`", *components(TrainConfig, key, f"{key}.")]
    parts += [LEDGER, "## A claim", table(LedgerClaim)]
    for title, kind in {
        "`effect`": ClaimedEffect,
        "`known`": ReportedEvidence,
        "`test` by runs": ArmsTest,
        "`test` by calculation": ArithmeticTest,
    }.items():
        parts += [f"## {title}", described(kind), table(kind)]
    parts += [CURVES, table(CurvesFile), "## `arrays`", described(Arrays), table(Arrays, "arrays.")]
    return GENERATED + "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def option_row(parameter: Parameter) -> tuple[str, ...]:
    """Return the cells of an option: spellings, type, default, meaning."""
    default = f"`{parameter.default}`" if parameter.default else ""
    names = ", ".join(f"`{name}`" for name in parameter.names)
    return names, parameter.type, "required" if parameter.required else default, parameter.help


def command_page() -> str:
    """Return docs/cli.md."""
    parts = [
        "# Command reference",
        "Results are written to standard output, messages and progress to standard error. Commands that print results "
        "take `--format table|json|yaml|csv`.",
        EXIT_STATUS,
    ]
    panel = ""
    for command in commands():
        if command.panel != panel:
            panel = command.panel
            parts.append(f"## {panel}")
        parts += [f"### `hpo {command.name}`", command.help, f"```bash\n{command.example}\n```"]
        rows = [option_row(parameter) for parameter in (*command.arguments, *command.options)]
        head = ["| option | value | default | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([*head, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)]) if rows else "")
    return GENERATED + "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def pages() -> dict[Path, str]:
    """Return the text of every generated file."""
    table = parse_yaml((DOCS / "packages.yaml").read_text("utf-8"))
    return {
        DOCS / "cli.md": command_page(),
        DOCS / "configuration.md": configuration(),
        DOCS / "packages.md": packages(table),
        DOCS / "packages.svg": drawing(table),
        DOCS / "search.md": with_tables((DOCS / "search.md").read_text("utf-8")),
    }


def main() -> int:
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} is not up to date; run `python -m docs.generate`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

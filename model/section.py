"""Base class of all configuration sections, dotted paths to their fields, and shared number types."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # decay of a moving average, such as beta1
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """A frozen group of hyperparameters. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    forms: ClassVar[Mapping[str, str]] = {}
    """Raw fields that another field can replace: {"beta2": "beta2_half_life"}. The raw field is null then, because one
    value has one source; the other field is null by default."""

    @model_validator(mode="before")
    @classmethod
    def _leave_raw_field_to_its_other_form(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        replaced = [raw for raw, other in cls.forms.items() if values.get(other) is not None and raw not in values]
        return {**values, **dict.fromkeys(replaced)} if replaced else values

    @model_validator(mode="after")
    def _check_forms(self) -> Self:
        problems = []
        for raw, other in self.forms.items():
            value, replacement = getattr(self, raw), getattr(self, other)
            if value is not None and replacement is not None:
                problems.append(
                    f"{raw} and {other} must not both be given, because {raw} follows from {other}; leave one of them "
                    f"out, got {value} and {replacement}"
                )
            elif value is None and replacement is None and type(self).model_fields[raw].default is not None:
                problems.append(f"{raw} must be a number, unless {other} is given, got null")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def flat(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return all fields by dotted path, such as {"optimizer.lr": 0.001}."""
    fields: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping by dotted path; an empty mapping is a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        leaves |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves


def close_match(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that a misspelled word most likely means, None if no word is similar.

    A word that begins with the misspelled word comes before words with similar letters.
    """
    words = list(known)
    starts = [other for other in words if word and other.startswith(word)]
    return next(iter(starts or difflib.get_close_matches(word, words, n=1)), None)


def updated(section: M, values: Mapping[str, Any]) -> M:
    """Return a copy with fields replaced by dotted path, such as {"optimizer.lr": 3e-4}.

    A new `name` switches the component. Explicitly set fields keep their values if the new component has them; all
    other fields take the defaults of the new component.

    Raises:
        pydantic.ValidationError: the result is not a valid configuration.
    """
    tree = section.model_dump(exclude_unset=True)
    # model_dump(exclude_unset=True) leaves out a name that is the default.
    for path, value in flat(section).items():
        if path.endswith(".name"):
            _set(tree, path, value)
    for path in sorted(values, key=lambda p: (not p.endswith(".name"), p)):
        if path.endswith(".name"):
            _rename(section, tree, path, values[path])
        else:
            _set(tree, path, values[path])
    for path in values:
        _drop_other_form(section, tree, path, values)
    return type(section).model_validate(tree)


def changes(before: BaseModel, after: BaseModel) -> dict[str, Any]:
    """Return the fields of `after` that differ from `before`, by dotted path.

    A field that is null only because another form of it is given is left out: with a new beta2_half_life, `updated`
    sets beta2 to null anyway.
    """
    old, new = flat(before), flat(after)
    return {p: value for p, value in new.items() if (p not in old or old[p] != value) and not _is_replaced(after, p)}


def _is_replaced(section: BaseModel, path: str) -> bool:
    """Return whether a field is null because another form of it is given."""
    *parents, leaf = path.split(".")
    for parent in parents:
        section = getattr(section, parent)
    pairs = getattr(type(section), "forms", {}).items()
    others = [other for pair in pairs for field, other in (pair, pair[::-1]) if field == leaf]
    return getattr(section, leaf) is None and any(getattr(section, other) is not None for other in others)


def component(section: BaseModel, key: str, name: Any) -> type[BaseModel] | None:
    """Return the class with this `name` in the union of the field `key`, or None if there is no such class."""
    field = type(section).model_fields.get(key)  # None: no such field, which validation reports
    kinds = getattr(field.annotation, "__args__", ()) if field else ()
    for kind in kinds:
        if isinstance(kind, type) and name in _names(kind):
            return kind
    return None


def _names(kind: type) -> tuple[Any, ...]:
    if not issubclass(kind, BaseModel) or "name" not in kind.model_fields:
        return ()
    return getattr(kind.model_fields["name"].annotation, "__args__", ())


def _rename(section: BaseModel, tree: dict[str, Any], path: str, name: Any) -> None:
    """Switch a component and keep the explicitly set fields that the new component has too."""
    key = path.removesuffix(".name")
    old = tree.get(key, {})
    if old.get("name") == name:
        return
    kind = component(section, key, name) if "." not in key else None
    common = {k: v for k, v in old.items() if kind and k in kind.model_fields}
    # The new component may lack the other form of a raw field that is null.
    common = {k: v for k, v in common.items() if v is not None or kind is None or kind.model_fields[k].default is None}
    tree[key] = common | {"name": name}


def _drop_other_form(section: BaseModel, tree: dict[str, Any], path: str, values: Mapping[str, Any]) -> None:
    """Remove the other form of a field that is set, unless that is set too."""
    key, _, leaf = path.rpartition(".")
    fields = tree.get(key)
    if not isinstance(fields, dict) or values[path] is None:
        return
    kind = component(section, key, fields.get("name")) or type(getattr(section, key, None))
    for pair in getattr(kind, "forms", {}).items():
        for field, other in (pair, pair[::-1]):
            if field == leaf and f"{key}.{other}" not in values:
                fields.pop(other, None)


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            return  # validation reports the key that is not a section
    tree[leaf] = value

"""The parameters of a W&B sweep as constants and ranges of a study."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from hpo.config.validation import nearest, shown_value
from hpo.errors import Problem
from hpo.foreign.lines import Notes, Path
from hpo.search.foreign_ranges import SWEEP_DISTRIBUTIONS

Entry = dict[str, Any]
SIGMAS = 3  # width of a range instead of a normal distribution, on each side, in standard deviations

_SCALAR = (bool, int, float, str, type(None))


def parameters(tree: Mapping[str, Any], notes: Notes, path: Path = ("parameters",)) -> Iterator[tuple[str, Path, Any]]:
    """Yield (dotted name, path in the file, entry) of each parameter. Nested parameters have dotted names.

    Raises:
        Problem: a parameter is no mapping.
    """
    for name, entry in tree.items():
        here = (*path, name)
        if not isinstance(entry, Mapping):
            key = "values" if isinstance(entry, list) else "value"
            got = f"must be a mapping, such as {{{key}: {shown_value(entry)}}}, got {shown_value(entry)}"
            raise Problem(f"{notes.place(here)}: {name}: {got}")
        dotted = ".".join(str(part) for part in here if part != "parameters")
        if "parameters" in entry and isinstance(entry["parameters"], Mapping):
            notes.add(here, "is nested; W&B passes one mapping, hpo one value for each dotted name")
            yield from parameters(entry["parameters"], notes, (*here, "parameters"))
        else:
            yield dotted, here, entry


def constant(entry: Mapping[str, Any]) -> bool:
    """Return whether a parameter has one value."""
    return "value" in entry or (isinstance(entry.get("values"), list) and len(entry["values"]) == 1)


def constant_value(entry: Mapping[str, Any]) -> Any:
    return entry["value"] if "value" in entry else entry["values"][0]


def read_entry(entry: Mapping[str, Any], path: Path, notes: Notes) -> Entry:
    """Return a range or choices.

    Raises:
        Problem: the parameter is not complete, or its distribution is not known.
    """
    known = ("distribution", "min", "max", "mu", "sigma", "a", "b", "q", "value", "values", "probabilities")
    for key in entry.keys() - set(known):
        notes.add((*path, key), f"is left out; no such key of a parameter{nearest(key, known)}")
    if "values" in entry:
        return _choices(entry, path, notes)
    word = entry.get("distribution")
    if word is None:
        word = "int_uniform" if isinstance(entry.get("min"), int) and isinstance(entry.get("max"), int) else "uniform"
    convert = _CONVERTERS.get(str(word))
    if convert is None:
        raise Problem(
            f"{notes.place((*path, 'distribution'))}: {path[-1]}: distribution must be one of "
            f"{', '.join([*_CONVERTERS, 'categorical', 'constant'])}, got {shown_value(word)}"
            f"{nearest(str(word), [*_CONVERTERS, *SWEEP_DISTRIBUTIONS])}"
        )
    try:
        converted = convert(entry, lambda text: notes.add((*path, "distribution"), text))
    except KeyError as error:
        key = error.args[0]
        got = f", got {shown_value(entry[key])}; write a number" if key in entry else "; add it"
        needs = f"distribution {word} must have {key}, a finite number{got}"
        raise Problem(f"{notes.place(path)}: {path[-1]}: {needs}") from None
    except (OverflowError, ValueError) as error:
        raise Problem(f"{notes.place(path)}: {path[-1]}: {error}") from None
    if converted["low"] >= converted["high"]:
        got = f"{converted['low']} and {converted['high']}"
        raise Problem(f"{notes.place(path)}: {path[-1]}: min must be less than max, got {got}")
    return converted


def _choices(entry: Mapping[str, Any], path: Path, notes: Notes) -> Entry:
    values = entry["values"]
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        rule = f"values must be a list with at least one value, got {shown_value(values)}"
        raise Problem(f"{notes.place((*path, 'values'))}: {path[-1]}: {rule}")
    for i, value in enumerate(values):
        if isinstance(value, float) and not math.isfinite(value):
            rule = f"values must be finite numbers or text, got {shown_value(value)}; remove it, or put it in quotes"
            raise Problem(f"{notes.place((*path, 'values', i))}: {path[-1]}: {rule}")
    if "probabilities" in entry:
        notes.add((*path, "probabilities"), "is left out, because all choices are equally likely at the start")
    nested = [value for value in values if not isinstance(value, _SCALAR)]
    if nested:
        notes.add((*path, "values"), f"lists and mappings become text, such as {str(nested[0])!r:.60}, as in a flag")
    plain = [value if isinstance(value, _SCALAR) else str(value) for value in values]
    distinct = [value for i, value in enumerate(plain) if value not in plain[:i]]
    if len(distinct) < len(plain):
        notes.add((*path, "values"), f"holds equal values; the study has {len(distinct)} different ones")
    return {"choices": distinct}


def _number(entry: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = entry.get(key, default)
    if isinstance(value, str):  # YAML 1.1, which W&B reads, takes 1e-4 for text
        value = _from_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise KeyError(key)
    return value


def _from_text(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


Note = Callable[[str], None]


def _uniform(entry: Mapping[str, Any], note: Note) -> Entry:
    return {"low": float(_number(entry, "min", 0.0)), "high": float(_number(entry, "max", 1.0))}


def _int_uniform(entry: Mapping[str, Any], note: Note) -> Entry:
    low, high = _number(entry, "min"), _number(entry, "max")
    return {"low": math.ceil(low), "high": math.floor(high)}


def _q_uniform(entry: Mapping[str, Any], note: Note) -> Entry:
    """Return the multiples of q: W&B rounds a value of the range to them."""
    low, high, q = _number(entry, "min"), _number(entry, "max"), _number(entry, "q", 1)
    if q <= 0:
        raise ValueError(f"q must be greater than 0, got {q}")
    step = Decimal(str(q))
    ends = [round(Decimal(str(end)) / step) * step for end in (low, high)]
    if isinstance(q, int):
        return {"low": int(ends[0]), "high": int(ends[1]), **({} if q == 1 else {"step": q})}
    return {"low": float(ends[0]), "high": float(ends[1]), "step": q}


def _log_uniform_values(entry: Mapping[str, Any], note: Note) -> Entry:
    low, high = _number(entry, "min"), _number(entry, "max")
    if low <= 0:
        raise ValueError(f"min must be greater than 0 for a logarithmic distribution, got {low}")
    return {"low": float(low), "high": float(high), "log": True}


def _q_log_uniform_values(entry: Mapping[str, Any], note: Note) -> Entry:
    q = _number(entry, "q", 1)
    converted = _log_uniform_values(entry, note)
    if q == 1 and isinstance(q, int) and converted["low"] >= 1:
        return {"low": round(converted["low"]), "high": round(converted["high"]), "log": True}
    note(f"has steps of {q}; a logarithmic range has no steps, so the study searches every number")
    return converted


def _log_uniform(entry: Mapping[str, Any], note: Note) -> Entry:
    return _log_uniform_values({"min": _exp(_number(entry, "min")), "max": _exp(_number(entry, "max"))}, note)


def _q_log_uniform(entry: Mapping[str, Any], note: Note) -> Entry:
    ends = {"min": _exp(_number(entry, "min")), "max": _exp(_number(entry, "max"))}
    return _q_log_uniform_values({**ends, "q": entry.get("q", 1)}, note)


def _inv_log_uniform(entry: Mapping[str, Any], note: Note) -> Entry:
    return _log_uniform({"min": -_number(entry, "max"), "max": -_number(entry, "min")}, note)


def _normal(entry: Mapping[str, Any], note: Note) -> Entry:
    mu, sigma = _number(entry, "mu", 0.0), _number(entry, "sigma", 1.0)
    if sigma <= 0 or not math.isfinite(abs(mu) + SIGMAS * sigma):
        raise ValueError(f"sigma must be greater than 0, and mu + {SIGMAS} sigma must be finite, got {mu} and {sigma}")
    note(f"has no counterpart; the study searches mu ± {SIGMAS} sigma with a prior at mu")
    return {"low": mu - SIGMAS * sigma, "high": mu + SIGMAS * sigma, "prior": {"at": mu}}


def _log_normal(entry: Mapping[str, Any], note: Note) -> Entry:
    normal = _normal(entry, note)
    at = _exp(normal["prior"]["at"])
    return {"low": _exp(normal["low"]), "high": _exp(normal["high"]), "log": True, "prior": {"at": at}}


def _beta(entry: Mapping[str, Any], note: Note) -> Entry:
    note("has no counterpart; the study searches 0 to 1 uniformly; add a prior, such as prior: {at: 0.8}")
    return {"low": 0.0, "high": 1.0}


def _exp(exponent: float) -> float:
    """Return e to a power with six digits, because the ends of a range are read by people."""
    if abs(exponent) > math.log(sys.float_info.max):
        raise ValueError(f"the exponents of log_uniform must be between -709 and 709, got {exponent}")
    return float(f"{math.exp(exponent):.6g}")


_CONVERTERS: dict[str, Callable[[Mapping[str, Any], Note], Entry]] = {
    "uniform": _uniform,
    "int_uniform": _int_uniform,
    "q_uniform": _q_uniform,
    "log_uniform": _log_uniform,
    "log_uniform_values": _log_uniform_values,
    "q_log_uniform": _q_log_uniform,
    "q_log_uniform_values": _q_log_uniform_values,
    "inv_log_uniform": _inv_log_uniform,
    "inv_log_uniform_values": _log_uniform_values,
    "normal": _normal,
    "q_normal": _normal,
    "log_normal": _log_normal,
    "q_log_normal": _log_normal,
    "beta": _beta,
    "q_beta": _beta,
}

"""Read the ranges of other programs: W&B's words are accepted, and others are refused with the range to write instead.

A word that is close in letters may mean another scale: `loguniform` of Optuna and Ray Tune is not `uniform`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hpo.config.validation import nearest, shown_value

# The distributions of a W&B sweep, as keys of a range.
SWEEP_DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "int_uniform": {},
    "q_uniform": {},
    "log_uniform_values": {"log": True},
    "categorical": {},
}
SWEEP_KEYS = {"min": "low", "max": "high", "values": "choices", "q": "step"}

# Key of a range elsewhere -> the key here.
OTHER_KEYS = {
    **dict.fromkeys(["lower", "minimum", "start", "from", "lo"], "low"),
    **dict.fromkeys(["upper", "maximum", "stop", "end", "to", "hi"], "high"),
    **dict.fromkeys(["options", "categories", "candidates", "grid_search", "list"], "choices"),
    **dict.fromkeys(["quantum", "resolution", "step_size", "increment"], "step"),
    **dict.fromkeys(["log_scale", "logscale", "is_log"], "log"),
}
SCALE_KEYS = ("distribution", "type", "dist", "prior", "sampling", "scale", "param_type", "_type", "kind")

# Distribution elsewhere, in lower case without separators -> the form of the range to use.
FORMS = {
    **dict.fromkeys(["float", "double", "real", "int", "integer", "randint", "number", "linear", "uniform"], "linear"),
    **dict.fromkeys(["loguniform", "loguniformvalues", "log", "log10", "lograndint", "intloguniform"], "log"),
    **dict.fromkeys(["reverseloguniform", "invloguniform", "invloguniformvalues", "logint", "logscale"], "log"),
    **dict.fromkeys(["discreteuniform", "quniform", "qrandint", "qint", "quantized"], "steps"),
    **dict.fromkeys(
        ["choice", "pchoice", "categorical", "categoricalwprobabilities", "ordinal", "gridsearch"], "choices"
    ),
    **dict.fromkeys(["qloguniform", "qloguniformvalues", "qlograndint", "qlognormal"], "log steps"),
    **dict.fromkeys(["normal", "lognormal", "qnormal", "randn", "qrandn", "beta", "qbeta", "gaussian"], "unsupported"),
    **dict.fromkeys(["constant", "fixed", "value"], "constant"),
}
FIX = "set the field in base"


def read_range(given: Any) -> Any:
    """Return the keys of a range or of choices, with W&B's keys replaced by ours.

    Raises:
        ValueError: the keys or the distribution are of another program, or are not complete.
    """
    if isinstance(given, Sequence | int | float):
        raise ValueError(f"must be a mapping, got {shown_value(given)}; {_instead_of_value(given)}")
    if not isinstance(given, Mapping):
        return given
    _check_keys(given)
    ours: dict[str, Any] = {SWEEP_KEYS.get(str(key), str(key)): value for key, value in given.items()}
    word = ours.pop("distribution", "uniform")
    if not isinstance(word, str) or word not in SWEEP_DISTRIBUTIONS:
        known = ", ".join(SWEEP_DISTRIBUTIONS)
        hint = _instead_of_word(word, ours) or nearest(str(word), SWEEP_DISTRIBUTIONS)
        raise ValueError(f"distribution must be one of {known}, got {shown_value(word)}{hint}")
    if "distribution" in given:
        _check_distribution(word, ours)
    _check_choices(ours.get("choices"))
    return ours | SWEEP_DISTRIBUTIONS[word]


def _check_keys(given: Mapping[str, Any]) -> None:
    if "value" in given:
        raise ValueError(f"value must not be in a space, because it is not a range; {FIX}")
    if "probabilities" in given:
        raise ValueError(
            "probabilities must be omitted, because all choices are equally likely until trials have ended"
        )
    if "parameters" in given:
        raise ValueError("parameters must not be nested; use a dotted field for each, such as optimizer.lr: RANGE")
    for their_key, our_key in SWEEP_KEYS.items():
        if their_key in given and our_key in given:
            raise ValueError(f"must not have both {their_key} and {our_key}, which mean the same; remove one of them")
    ours = {OTHER_KEYS.get(key, SWEEP_KEYS.get(key, key)): value for key, value in given.items()}
    for key in SCALE_KEYS[1:]:
        if key == "prior" and not isinstance(given.get(key), str):
            _check_prior(given)
        elif key in given:
            hint = _instead_of_word(given[key], ours) or "; omit it"
            raise ValueError(f"{key} must not be in a range, got {shown_value(given[key])}{hint}")
    if wrong := [key for key in given if key in OTHER_KEYS]:
        keys = ", ".join(f"{OTHER_KEYS[key]} instead of {key}" for key in wrong)
        raise ValueError(f"must have the keys low and high, or choices; use {keys}")


def _check_prior(given: Mapping[str, Any]) -> None:
    """Check that a prior is not the value itself. A text is the scale of a range in scikit-optimize."""
    prior = given.get("prior")
    if isinstance(prior, int | float | Sequence):
        raise ValueError(f"prior must be a mapping, got {shown_value(prior)}; use {{at: {shown_value(prior)}}}")


def _check_distribution(word: str, ours: Mapping[str, Any]) -> None:
    """Check that the keys are those that a W&B distribution needs."""
    if word == "categorical" and "choices" not in ours:
        raise ValueError("distribution categorical must have values; add them")
    if word != "categorical" and "choices" in ours:
        raise ValueError(f"must not have both distribution {word} and a list of values; remove one of them")
    if word == "q_uniform" and ours.get("step") is None:
        raise ValueError("distribution q_uniform must have q, the distance between values; add q, or use uniform")
    ends = [ours.get("low"), ours.get("high")]
    if word == "int_uniform" and any(isinstance(end, float) and not end.is_integer() for end in ends):
        raise ValueError(f"distribution int_uniform must have whole numbers, got {ends[0]} and {ends[1]}; use uniform")


def _check_choices(choices: Any) -> None:
    """Check that no choice is a list or a mapping, which Optuna cannot store."""
    nested = [c for c in choices if isinstance(c, list | tuple | dict)] if isinstance(choices, list | tuple) else []
    if nested:
        got = f"got {shown_value(nested[0])}; {_instead_of_lists(choices)}"
        raise ValueError(f"choices must be numbers, text, true, false or null, {got}")


def _instead_of_lists(choices: Sequence[Any]) -> str:
    """Return what to write instead of choices that are lists: their items, or each as a text."""
    items = [item for choice in choices for item in (choice if isinstance(choice, list | tuple) else [choice])]
    single = [item for item in items if isinstance(item, bool | int | float | str)]
    texts = ", ".join(_as_text(choice) for choice in choices[:3])
    return (
        f"use choices: {shown_value(list(dict.fromkeys(single)))} for single values, or texts, such as "
        f"choices: [{texts}], which a validator of your own configuration converts"
    )


def _as_text(choice: Any) -> str:
    items = choice.values() if isinstance(choice, dict) else choice if isinstance(choice, list | tuple) else [choice]
    return json.dumps("-".join(str(item) for item in items)[:40])


def _instead_of_value(given: Any) -> str:
    """Return what to write instead of a number, a list or a text in the place of a range."""
    if isinstance(given, str):
        word = re.match(r"[\w. ]*", given.strip())
        numbers = [float(n) for n in re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", given[:200])]
        ours = dict(zip(("low", "high"), numbers, strict=False)) if len(numbers) >= 2 else {}
        hint = _instead_of_word(word.group().rpartition(".")[2] if word else "", ours)
        return hint.removeprefix("; ") or f"use {{low: A, high: B}} or {{choices: [...]}}, or {FIX}"
    if isinstance(given, Sequence):
        if any(isinstance(item, list | tuple | dict) for item in given):
            return _instead_of_lists(given)
        shown = shown_value(list(given))
        return f"use {{choices: {shown}}}" + (f" or {{low: {given[0]}, high: {given[1]}}}" if _is_pair(given) else "")
    return f"use {{low: A, high: B}} or {{choices: [...]}}, or {FIX}"


def _is_pair(given: Sequence[Any]) -> bool:
    return len(given) == 2 and all(type(end) in (int, float) for end in given) and given[0] < given[1]


def _instead_of_word(word: Any, ours: Mapping[str, Any]) -> str:
    """Return "; use RANGE" for a distribution of another program, "" if its name is not known.

    ours: the other keys of the range, under our names.
    """
    plain = re.sub(r"[\W_]", "", str(word)[:60]).lower().removeprefix("hp").removeprefix("suggest")
    form = FORMS.get(plain.removesuffix("distribution"))
    low, high = (
        ours[key] if type(ours.get(key)) in (int, float) else word for key, word in (("low", "A"), ("high", "B"))
    )
    if str(word) in ("log_uniform", "q_log_uniform", "inv_log_uniform"):
        low, high = _from_exponents(low, high)
    step = ours["step"] if type(ours.get("step")) in (int, float) else "Q"
    match form:
        case "linear":
            return f"; use {{low: {low}, high: {high}}}"
        case "log":
            return f"; use {{low: {low}, high: {high}, log: true}}"
        case "steps":
            return f"; use {{low: {low}, high: {high}, step: {step}}}"
        case "choices":
            return f"; use {{choices: {shown_value(ours.get('choices', ['A', 'B']))}}}"
        case "log steps":
            return f"; use {{low: {low}, high: {high}, log: true}}, which has no steps, or choices"
        case "unsupported":
            return f"; use {{low: {low}, high: {high}}}, because only uniform and log-uniform ranges are searched"
        case "constant":
            return f"; {FIX}"
    return ""


def _from_exponents(low: Any, high: Any) -> tuple[Any, Any]:
    """Return the bounds of W&B's log_uniform, whose min and max are exponents of e, unless both are positive."""
    exponents = all(type(end) in (int, float) and abs(end) < 700 for end in (low, high)) and min(low, high) <= 0
    return (f"{math.exp(low):.4g}", f"{math.exp(high):.4g}") if exponents else (low, high)

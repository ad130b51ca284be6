"""Find what the ladder of a search predicts for a run at another scale: the values of the rule `fitted`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.console import command_line, format_number
from hpo.errors import NothingFeasible, Problem, StorageError
from hpo.storage.engine import open_readonly
from hpo.storage.retry import OpenStorage
from hpo.transfer.rules import Move
from model.section import flat

TARGET_FIELDS = ("run.tokens", "model.n_embd", "model.n_layer", "model.n_head")


@dataclass(frozen=True)
class Fitted:
    """The values that a ladder predicts, or the reason why there are none.

    source: the ladder and the predicted loss. missing: the reason, "" if there are values.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    missing: str = ""


Lookup = Callable[[Move], Fitted]


def in_storage(url: str, search: str | None) -> Lookup:
    """Return a lookup in a storage, which is opened only if it is called.

    search: name of the study that was searched, None if the configuration comes from no study.
    """

    def find(move: Move) -> Fitted:
        if search is None:
            return Fitted(missing="the configuration comes from no study, so no ladder of `hpo transfer` belongs to it")
        try:
            with open_readonly(url) as store:
                return find_fitted(store, search, move)
        except StorageError as error:
            return Fitted(missing=f"no ladder of {search} can be read: {error}")

    return find


def find_fitted(store: OpenStorage, search: str, move: Move) -> Fitted:
    """Return what the latest finished ladder of a search predicts for the new scale."""
    from hpo.transfer.fitted import fitted_prediction  # imports scipy

    target = target_of(move)
    try:
        prediction = fitted_prediction(store, search, target)
    except (NothingFeasible, Problem) as problem:
        return Fitted(missing="; ".join(problem.lines))
    if prediction is None:
        to = ",".join(f"{path}={value}" for path, value in target.items())
        remedy = command_line("hpo", "transfer", "--study", search, "--to", to)
        return Fitted(missing=f"no ladder of {search} has finished; `{remedy}` trains one")
    value, low, high = (format_number(v) for v in (prediction.value, prediction.low, prediction.high))
    values = {f.path: prediction.values[f.path] for f in prediction.fields}
    return Fitted(values, f"ladder of {search}, which predicts a value of {value} ({low} to {high})")


def target_of(move: Move) -> dict[str, Any]:
    """Return the fields of length and size that differ at the new scale, or the length if none does."""
    found, goal = flat(move.found), flat(move.goal)
    changed = {path: goal[path] for path in TARGET_FIELDS if found[path] != goal[path]}
    return changed or {"run.tokens": move.goal.run.tokens}

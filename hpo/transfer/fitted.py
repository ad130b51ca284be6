"""The rule `fitted`: predict a configuration at another length or size from the ladder of its search."""

from collections.abc import Mapping
from typing import Any

from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import read_snapshot
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_ids
from hpo.transfer.ladder import Ladder, ladders_of, read_ladder
from hpo.transfer.prediction import Prediction, fit_ladder, predict


def find_ladder(store: OpenStorage, search: str) -> Ladder | None:
    """Return the latest finished ladder of a search, None if the storage holds none.

    search: name of the study that was searched, as `provenance.study` of an exported file says.
    """
    if search not in study_ids(store):
        return None
    for snapshot in ladders_of(store, read_snapshot(store, search)):
        if has_ended(snapshot):
            return read_ladder(snapshot)
    return None


def fitted_prediction(store: OpenStorage, search: str, target: Mapping[str, Any]) -> Prediction | None:
    """Return what the ladder of a search predicts for a target, None if the search has no finished ladder.

    search: name of the study that was searched. target: dotted fields of length and size, such as run.tokens.
    `Prediction.values` has every field to set, `Prediction.fields` the same with intervals and the copied values.

    Raises:
        NothingFeasible: the ladder has too few complete runs.
        Problem: the target is smaller than the ladder, or differs in a field in which its cells do not.
    """
    ladder = find_ladder(store, search)
    return None if ladder is None else predict(ladder, fit_ladder(ladder), target)

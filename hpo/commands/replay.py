"""`hpo replay`: what other samplers and pruners would have done, on recorded learning curves."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import read_snapshot
from hpo.console import Format, Rounded, print_record, print_records, say, show
from hpo.errors import Problem
from hpo.replay.comparison import FOR_SAMPLERS, Budget, Compared, compare, parse_rules
from hpo.replay.curves import Curves
from hpo.replay.measures import GROUP, Estimate, lost_share, mean_of, pruned_share, rank_correlations, summary
from hpo.replay.study_curves import curves_of_study
from hpo.replay.surrogate import held_out_error
from hpo.replay.tables import read_curves
from hpo.replay.worlds import WORLDS
from hpo.storage.engine import open_readonly
from hpo.study.stored import study_from_spec

DEFAULT_PRUNERS = ("none", "median", "asha")  # for recorded curves of no study
DEFAULT_RUNS = 30  # full runs of a search on recorded curves of no study


@dataclass(frozen=True)
class ReplayRequest:
    """What to replay: a study of the storage, or the curves of a description, and with which rules.

    runs, trials: budget of each search; both None for the trials of the study, for its tokens if a sampler is given, or
    for DEFAULT_RUNS without a study.
    """

    study: str | None
    curves: Path | None
    samplers: Sequence[str]
    pruners: Sequence[str]
    worlds: Sequence[str]
    trials: int | None
    runs: int | None
    workers: int
    seeds: int


@dataclass(frozen=True)
class Replay:
    """The result of a replay: the curves, and the searches with each set of rules in each world."""

    curves: Curves
    compared: Sequence[Compared]
    notes: Sequence[str]

    def rows(self) -> list[dict[str, Any]]:
        """Return the measures of the searches, one row per set of rules and world."""
        return [search_row(one) for one in self.compared]


def run_replay(storage: str, request: ReplayRequest) -> Replay:
    """Simulate the searches of a request.

    Raises:
        Problem: the request or the curves are invalid.
        NothingFeasible: no trial of the study has ended.
    """
    if request.curves is not None and request.study is not None:
        raise Problem("--curves: must be omitted with --study")
    if request.trials is not None and request.runs is not None:
        raise Problem("--runs: must be omitted with --trials")
    worlds = list(request.worlds) or _default_worlds(request)
    if unknown := [name for name in worlds if name not in WORLDS]:
        raise Problem(f"--world: must be one of {', '.join(WORLDS)}, got {unknown[0]!r}")
    if not request.samplers and any(name in FOR_SAMPLERS for name in worlds):
        raise Problem(f"--world: must be recorded or shuffled without --sampler, got {', '.join(worlds)}")
    source = _study_source(storage, request) if request.curves is None else _Source(read_curves(request.curves))
    rules = parse_rules(request.samplers, [*source.pruners, *request.pruners] or list(DEFAULT_PRUNERS))
    trials, runs = request.trials, request.runs
    if trials is None and runs is None:
        runs = source.runs
    budget = Budget(trials, runs, workers=request.workers, seeds=request.seeds)
    compared = list(compare(source.curves, worlds, rules, budget))
    return Replay(source.curves, compared, list(_notes(source.curves, worlds)))


@dataclass(frozen=True)
class _Source:
    """Curves to replay, the pruner of their study as YAML, and the default budget in full runs."""

    curves: Curves
    pruners: Sequence[str] = ()
    runs: int | None = DEFAULT_RUNS


def _study_source(storage: str, request: ReplayRequest) -> _Source:
    with open_readonly(storage) as store:
        snapshot = read_snapshot(store, request.study)
        if snapshot.spec.get("arms"):
            raise Problem(f"--study: must be a search, got {snapshot.name}, whose arms are given and never pruned")
        # Only a sampler needs the class of the configuration, which may be code of the user.
        base = study_from_spec(snapshot.spec, snapshot.name).base if request.samplers else None
        curves = curves_of_study(snapshot, base)
        spent = sum(t.last_step or 0 for t in snapshot.own)
        pruners = [json.dumps(snapshot.spec["pruner"])]
    # Without a sampler, the question is what another rule would have done with the same trials.
    return _Source(curves, pruners, max(1, math.ceil(spent / curves.rungs)) if request.samplers else None)


def _default_worlds(request: ReplayRequest) -> list[str]:
    if request.samplers:
        return list(FOR_SAMPLERS)
    return ["recorded", "shuffled"] if request.curves is None else ["shuffled"]


def print_replay(replay: Replay, format: Format) -> None:
    """Print the tables of a replay, or all its measures as JSON or YAML. CSV has the searches only."""
    searches = replay.rows()
    if format is Format.csv:
        print_records(searches, format)
        return
    groups = [row for one in replay.compared for row in group_rows(one)]
    if format is not Format.table:
        tree = {"curves": curves_record(replay.curves), "rank": rank_rows(replay.curves)}
        print_record(tree | {"searches": searches, "groups": groups}, format)
        return
    for note in replay.notes:
        say(f"note: {note}")
    for title, rows in (
        ("Rank correlation of the value at a rung with the final value", rank_rows(replay.curves)),
        ("Searches", searches),
        (f"Ended, by number of the trial in groups of {GROUP}", groups),
    ):
        show(f"{title}\n")
        print_records(rows, format)
        show("")


def _notes(curves: Curves, worlds: Sequence[str]) -> Iterator[str]:
    """Yield what a reader of the tables must know: what is not known, and how good a surrogate is."""
    unknown = int((~curves.known).sum())
    if unknown:
        yield (
            f"{unknown} of {len(curves.known)} runs ended before their last rung, so nobody knows their results; all "
            "figures are those of the runs with a known result"
        )
    for reason, n in curves.omitted.items():
        yield f"{n} runs are left out: {reason}"
    if "surrogate" in worlds:
        error = held_out_error(curves)
        yield (
            f"the surrogate predicts held-out configurations with a rank correlation of {error.rank:.2f}; for "
            f"the better half, its error is {error.rmse:.4f} and their standard deviation {error.spread:.4f}"
        )


def curves_record(curves: Curves) -> dict[str, Any]:
    """Return the size of the curves."""
    return {
        "name": curves.name,
        "configurations": len(curves.params),
        "runs": len(curves.config),
        "known": int(curves.known.sum()),
        "rungs": curves.rungs,
        "omitted": dict(curves.omitted),
    }


def rank_rows(curves: Curves) -> list[dict[str, Any]]:
    """Return the rank correlation with the final value for each rung."""
    return [{"rung": rung, **_estimate("rank", one)} for rung, one in enumerate(rank_correlations(curves), 1)]


def search_row(one: Compared) -> dict[str, Any]:
    """Return the measures of the searches with one set of rules."""
    of = summary(one.records, one.reference, one.budget)
    curves = one.world.curves
    trained = mean_of(one.records, lambda record: record["rungs"]).value
    return {
        "world": one.world.name,
        "rules": one.rules.label,
        "seeds": of["seeds"],
        "trials": Rounded(of["trials"], 1),
        "tokens": Rounded(trained * curves.rung_tokens, 0 if curves.rung_tokens * curves.rungs > 1 else 1),
        "saved": Rounded(1 - trained / (of["trials"] * curves.rungs), 2),
        "best": curves.direction.loss(one.world.optimum + of["regret"][1.0].value),
        **_estimate("ratio", of["ratio"], 2),
        "reached": Rounded(of["reached"], 2),
        **_estimate("regret", of["regret"][1.0], 4),
        "pruned": Rounded(of["pruned"].value, 2),
        **_estimate("best_lost", of["lost"], 3),
        "unknown": Rounded(mean_of(one.records, lambda record: record["unknown"]).value, 1),
    }


def group_rows(one: Compared) -> list[dict[str, Any]]:
    """Return the shares of trials that were ended, by number of the trial."""
    n_groups = max(len(record["groups"]) for record in one.records)
    rows = []
    for group in range(n_groups):
        at = slice(group, group + 1)
        row: dict[str, Any] = {"world": one.world.name, "rules": one.rules.label}
        row |= {"trials": f"{GROUP * group}-{GROUP * (group + 1) - 1}"}
        row |= {"pruned": Rounded(pruned_share(one.records, at).value, 2)}
        rows.append(row | _estimate("best_lost", lost_share(one.records, at), 2))
    return rows


def _estimate(name: str, estimate: Estimate, decimals: int = 3) -> dict[str, Any]:
    """Return the columns of a measure and its interval. A measure that does not exist is empty."""
    keys = (name, f"{name}_low", f"{name}_high")
    return {
        key: None if math.isnan(value) else Rounded(value, decimals) for key, value in zip(keys, estimate, strict=True)
    }

"""What a study shows, in words: the best against the baseline, the noise, luck, confirmation, what pruning saved."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpo.analysis.noise import Noise, decimals, expected_minimum
from hpo.analysis.snapshot import Snapshot, has_ended, read_snapshot, token_counts, trial_counts
from hpo.analysis.summary import goal_lines
from hpo.console import number
from hpo.errors import Problem
from hpo.evidence.paired import compare_arms, comparison_record
from hpo.storage.attributes import SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.trials import State, Trial, study_attrs, study_ids

CLEAR = 2.0  # sigmas below which a gain is called no more than noise


@dataclass(frozen=True)
class Related:
    """A study of arms that was made for another one: its snapshot, its verdicts and its table."""

    snapshot: Snapshot
    verdicts: Sequence[str] = ()
    table: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Verdict:
    """What a study shows: one sentence, and the sentences that say how far to believe it."""

    headline: str
    grounds: Sequence[str] = field(default_factory=list)
    caveats: Sequence[str] = field(default_factory=list)


def related_studies(store: OpenStorage, name: str, key: str) -> list[Related]:
    """Return the studies that confirm or ablate this one; key: confirms or ablates."""
    found = []
    for other, study_id in sorted(study_ids(store).items()):
        spec = study_attrs(store, study_id).get(SPEC) or {}
        if (spec.get("about") or {}).get(key) == name:
            found.append(_read(read_snapshot(store, other), key))
    return found


def _read(snapshot: Snapshot, key: str) -> Related:
    """Return what a study of arms says, or why it cannot be read here."""
    try:
        if key == "confirms":
            from hpo.evidence.confirm import confirmation_table, confirmation_verdicts

            return Related(snapshot, confirmation_verdicts(snapshot), confirmation_table(snapshot))
        from hpo.evidence.ablate import effect_table as effects
        from hpo.evidence.ablate import effect_verdicts as said

        return Related(snapshot, said(snapshot), effects(snapshot))
    except Problem as problem:  # a config of the user's own that is not on this machine
        return Related(snapshot, [f"cannot be read here: {line}" for line in problem.lines])


def verdict(snapshot: Snapshot, confirmed: Sequence[Related] = ()) -> Verdict:
    """Return what a study shows."""
    from hpo.analysis.warnings import study_warnings

    grounds = [_state(snapshot)] if not has_ended(snapshot) else []
    if snapshot.spec.get("arms"):
        return Verdict(_arms(snapshot), [*grounds, *own_comparison(snapshot).verdicts], study_warnings(snapshot))
    best = snapshot.best()
    if best is None:
        n = trial_counts(snapshot)
        told = ", ".join(f"{n[state]} {state}" for state in ("pruned", "failed") if n[state])
        return Verdict(
            f"No trial of {snapshot.name} is complete: {told or 'none has ended'}.", grounds, study_warnings(snapshot)
        )
    floor = snapshot.noise
    level = _level(snapshot, floor)
    headline = _headline(snapshot, best, level, floor)
    if level is not None and best.values[0] < level:
        grounds += _noise(snapshot, best, level, floor)
    grounds += [_confirmed(snapshot, confirmed), *goal_lines(snapshot), _pruning(snapshot)]
    return Verdict(headline, [line for line in grounds if line], study_warnings(snapshot))


def _state(snapshot: Snapshot) -> str:
    n = trial_counts(snapshot)
    total = f" of {sum(snapshot.slots.values())}" if snapshot.budget.get("trials") else ""
    done = n["complete"] + n["pruned"] + n["failed"]
    return f"The study has not ended: {done}{total} trials have, and all that follows may change."


def own_comparison(snapshot: Snapshot) -> Related:
    """Return verdicts and table of a study of arms, as what it was made for has them."""
    key = next((key for key in ("confirms", "ablates") if key in snapshot.spec["about"]), None)
    return (
        Related(snapshot, _pairwise(snapshot), [comparison_record(row) for row in compare_arms(snapshot)])
        if key is None
        else _read(snapshot, key)
    )


def _pairwise(snapshot: Snapshot) -> list[str]:
    first, *others = compare_arms(snapshot)
    told = []
    for row in others:
        said = f"{row.arm}: {row.verdict}"
        if row.difference is not None and row.p is not None:
            d = row.difference
            said += f": {d.mean:+.4f} against {first.arm} ({d.low:+.4f} to {d.high:+.4f}, p {row.p:.2g} of {d.n} pairs)"
        told.append(said)
    return told


def _arms(snapshot: Snapshot) -> str:
    first, *others = compare_arms(snapshot)
    if not others:
        spread = f", sd {number(first.sd)}" if first.sd is not None else ""
        return f"{first.arm}: {number(first.mean)}{spread}, {first.n} runs." if first.mean is not None else "No run."
    groups: dict[str, list[str]] = {}
    for row in others:
        groups.setdefault(row.verdict, []).append(row.arm)
    said = [f"{verdict}: {', '.join(names)}" for verdict, names in sorted(groups.items())]
    return f"Against {first.arm}, on {len(snapshot.spec['seeds'])} seeds each: {'; '.join(said)}."


def _level(snapshot: Snapshot, floor: Noise | None) -> float | None:
    """Return what the best is measured against: the mean of the baseline's runs, or its only run."""
    base = snapshot.baseline()
    return floor.mean if floor else base.values[0] if base and base.state == State.COMPLETE else None


def _digits(floor: Noise | None) -> int:
    return decimals(floor.sigma) if floor else 4


def _headline(snapshot: Snapshot, best: Trial, level: float | None, floor: Noise | None) -> str:
    d = _digits(floor)
    n = sum(trial_counts(snapshot)[state] for state in ("complete", "pruned", "failed"))
    found = f"trial {best.number} reached {snapshot.objective} {best.values[0]:.{d}f}"
    if level is None:
        return f"Of {n:,} trials, {found}, the smallest; no baseline is complete to compare it with."
    mean = f"the mean of {floor.n} runs of the baseline" if floor else "the baseline"
    if best.values[0] >= level or best is snapshot.baseline():
        return f"No trial beat the baseline, of {n:,}: {mean} is {level:.{d}f}, and {found}."
    return f"Of {n:,} trials, {found}, {level - best.values[0]:.{d}f} below {mean} ({level:.{d}f})."


def _noise(snapshot: Snapshot, best: Trial, level: float, floor: Noise | None) -> list[str]:
    """Return what the gain is in units of the noise, and how much of it luck may explain."""
    if floor is None:
        return [
            "How much of this is noise cannot be said: the baseline was run on one seed. With baseline_seeds: 4 in the "
            "study file it is run on four, and their spread is the noise."
        ]
    gain, d = level - best.values[0], _digits(floor)
    if floor.sigma == 0:
        return [f"{floor.n} seeds of the baseline end alike to the last bit: here, the seed makes no noise."]
    sigmas = gain / floor.sigma
    said = f"Runs of one configuration differ from seed to seed by σ = {floor.sigma:.{d}f} ({floor.n} seeds); "
    said += f"the gain is {sigmas:.1f} σ" + (", which is no more than noise." if sigmas < CLEAR else ".")
    n = tried(snapshot)
    luck = level - expected_minimum(n, level, floor.sigma)
    told = f"The luckiest of {n:,} runs of the baseline itself would be expected {luck:.{d}f} below its mean, "
    return [said, told + f"so luck may explain {'all' if luck >= gain else f'up to {luck / gain:.0%}'} of the gain."]


def tried(snapshot: Snapshot) -> int:
    """Return how many trials had the chance to be the best, pruned ones included."""
    kinds = [t.user_attrs.get("kind") for t in snapshot.in_state(State.COMPLETE, State.PRUNED)]
    return max(1, sum(kind != "seed" for kind in kinds))


def _confirmed(snapshot: Snapshot, found: Sequence[Related]) -> str:
    if not found:
        return (
            "This is not confirmed: the best of many noisy values flatters. "
            f"`hpo confirm --study {snapshot.name}` runs it again on fresh seeds, against the baseline."
        )
    return " ".join(f"Run again on fresh seeds ({one.snapshot.name}): {_short(one)}." for one in found)


def _short(one: Related) -> str:
    """Return the verdict on each arm in a word or two."""
    if not has_ended(one.snapshot):
        return f"not ended, {trial_counts(one.snapshot)['complete']} of {sum(one.snapshot.slots.values())} runs are complete"
    told = [
        f"{r['arm']} is {r['verdict']}"
        + (f" by {abs(r['difference']):.4g}" if r["verdict"] in ("better", "worse") else "")
        for r in one.table[1:]
    ]
    return "; ".join(told or one.verdicts) or "no verdict yet"


def _pruning(snapshot: Snapshot) -> str:
    pruned = [t for t in snapshot.own if t.state == State.PRUNED]
    if not pruned:
        return ""
    spared = sum(snapshot.rungs - (t.last_step or 0) for t in pruned)
    done = sum(t.last_step or 0 for t in snapshot.own)
    share = spared / (spared + done) if spared + done else 0.0
    n, spent = len(pruned), token_counts(snapshot)
    amount = f"{spent['saved_by_pruning']:,} tokens" if spent["saved_by_pruning"] is not None else f"{spared:,} rungs"
    trials = f"{n:,} of {len(snapshot.own):,} trials" if n > 1 else f"one of {len(snapshot.own)} trials"
    return f"Pruning stopped {trials} early and saved {amount}, {share:.0%} of what they all would have trained."

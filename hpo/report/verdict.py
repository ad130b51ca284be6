"""State what a study shows: the best trial against the baseline, the noise, confirmation, and the tokens saved."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpo.analysis.improvements import CLEAR_SIGMAS, improvement_lines
from hpo.analysis.looks import look_lines
from hpo.analysis.noise import Noise
from hpo.analysis.progress import has_ended, searched_trials, token_counts, trial_counts
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.summary import goal_lines, objective_decimals
from hpo.analysis.warnings import study_warnings
from hpo.console import command_line, fixed, format_number
from hpo.errors import Problem
from hpo.evidence.paired import compare_arms, comparison_record
from hpo.evidence.scale_labels import ScaleLabel
from hpo.storage.attributes import SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.storage.trials import State, Trial


@dataclass(frozen=True)
class RelatedStudy:
    """A study that `hpo confirm` or `hpo ablate` made for another study: its snapshot, verdicts and table.

    labels: of an ablation's changes, whether their effects hold at the scales of the search's ladder.
    """

    snapshot: Snapshot
    verdicts: Sequence[str] = ()
    table: Sequence[dict[str, Any]] = ()
    labels: Mapping[str, ScaleLabel] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a study shows: one sentence, the sentences that support or limit it, and warnings."""

    headline: str
    grounds: Sequence[str] = field(default_factory=list)
    warnings: Sequence[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the verdict as `hpo report --json` writes it."""
        return {"headline": self.headline, "grounds": list(self.grounds), "caveats": list(self.warnings)}


def related_studies(store: OpenStorage, names: Collection[str], key: str) -> list[RelatedStudy]:
    """Return the studies made for a study.

    names: the name of the study, and its earlier names. key: confirms or ablates.
    """
    studies = []
    for other, study_id in sorted(study_ids(store).items()):
        spec = study_attrs(store, study_id).get(SPEC) or {}
        if (spec.get("about") or {}).get(key) in names:
            studies.append(_interpret(read_snapshot(store, other), key, store))
    return studies


def own_comparison(snapshot: Snapshot) -> RelatedStudy:
    """Return verdicts and table of a study of arms, in the form of the command that made the study."""
    key = next((key for key in ("confirms", "ablates") if key in snapshot.spec["about"]), None)
    if key is not None:
        return _interpret(snapshot, key)
    return RelatedStudy(snapshot, _arm_verdicts(snapshot), [comparison_record(arm) for arm in compare_arms(snapshot)])


def _interpret(snapshot: Snapshot, key: str, store: OpenStorage | None = None) -> RelatedStudy:
    """Return verdicts and table of a confirmation or ablation, or why this machine cannot compute them."""
    try:
        if key == "confirms":
            from hpo.evidence.confirm_verdicts import confirmation_table, confirmation_verdicts

            return RelatedStudy(snapshot, confirmation_verdicts(snapshot), confirmation_table(snapshot))
        from hpo.evidence.effects import effect_table, effect_verdicts
        from hpo.evidence.scale_labels import scale_labels

        labels = {} if store is None else scale_labels(store, snapshot)
        return RelatedStudy(snapshot, effect_verdicts(snapshot), effect_table(snapshot, labels), labels)
    except Problem as problem:  # the user's configuration class is not on this machine
        return RelatedStudy(snapshot, [f"cannot be read here: {line}" for line in problem.lines])


def verdict(snapshot: Snapshot, confirmations: Sequence[RelatedStudy] = ()) -> Verdict:
    """Return what a study shows; confirmations: the studies that `hpo confirm` made for it."""
    warnings = study_warnings(snapshot)
    grounds = [] if has_ended(snapshot) else [_progress(snapshot)]
    if snapshot.spec.get("arms"):
        return Verdict(_arms_headline(snapshot), [*grounds, *own_comparison(snapshot).verdicts], warnings)
    best = snapshot.best()
    if best is None:
        n = trial_counts(snapshot)
        ends = ", ".join(f"{n[state]} {state}" for state in ("pruned", "failed") if n[state])
        return Verdict(f"No trial of {snapshot.name} is complete: {ends or 'none has ended'}.", grounds, warnings)
    floor = snapshot.noise
    reference = floor.mean if floor else snapshot.baseline_value
    if reference is not None and (gain := _gain(snapshot, best, reference)) > 0:
        grounds += _noise_sentences(snapshot, gain, floor)
    grounds += [f"{line[0].upper()}{line[1:]}." for line in improvement_lines(snapshot)]
    grounds += [_confirmation_sentence(snapshot, confirmations), *goal_lines(snapshot), _pruning_sentence(snapshot)]
    return Verdict(_headline(snapshot, best, reference), [line for line in grounds if line], warnings)


def _progress(snapshot: Snapshot) -> str:
    n = trial_counts(snapshot)
    total = f" of {sum(snapshot.slots.values())}" if snapshot.budget.get("trials") else ""
    ended = n["complete"] + n["pruned"] + n["failed"]
    paused = f" {n['paused']} are paused at a rung and may continue." if n.get("paused") else ""
    return f"The study is not finished: {ended}{total} trials have ended, and the results may change.{paused}"


def _headline(snapshot: Snapshot, best: Trial, reference: float | None) -> str:
    """Return the result of a search in one sentence; reference: what the best trial is compared with."""
    n, d, floor = len(searched_trials(snapshot)), objective_decimals(snapshot), snapshot.noise
    result = f"trial {best.number} with {snapshot.objective} {fixed(best.values[0], d)}"
    searched = f"{n:,} searched trial{'s' if n != 1 else ''}"
    if reference is None:
        return f"Best of {searched}: {result}. No run of the baseline is complete to compare it with."
    baseline = f"the mean of {floor.n} runs of the baseline" if floor else "the baseline"
    if not n:
        return f"No searched trial ended complete or pruned. The best baseline is {result}."
    improvement = _gain(snapshot, best, reference)
    if improvement <= 0 or best is snapshot.baseline():
        return f"None of {searched} is better than {baseline} ({fixed(reference, d)}). The best trial is {result}."
    gain = f"{fixed(improvement, d)} {snapshot.direction.better_side} {baseline} ({fixed(reference, d)})"
    return f"Best of {searched}: {result}, {gain}."


def _gain(snapshot: Snapshot, trial: Trial, reference: float) -> float:
    """Return how much better a trial is than a reference."""
    return snapshot.direction.loss(reference - trial.values[0])


def _noise_sentences(snapshot: Snapshot, gain: float, floor: Noise | None) -> list[str]:
    """Return the gain in units of the noise, and the part of it that chance may explain."""
    if floor is None:
        return [
            "The noise is unknown, because the baseline ran with one seed. Set `baseline_seeds: 4` in the study file "
            "to run it with four seeds and measure the noise."
        ]
    if floor.sigma == 0:
        return [f"All {floor.n} runs of the baseline have equal results, so the seed causes no noise."]
    n, d, sigmas = len(searched_trials(snapshot)), objective_decimals(snapshot), gain / floor.sigma
    size = f"The gain is {sigmas:.1f} σ" + (", which is within the noise" if sigmas < CLEAR_SIGMAS else "")
    noise = f"runs of the baseline with different seeds have a standard deviation of σ = {fixed(floor.sigma, d)}"
    luck = snapshot.direction.loss(floor.mean - floor.expected_best(max(1, n)))
    share = "all" if luck >= gain else f"up to {luck / gain:.0%}"
    return [
        f"{size}: {noise} ({floor.n} seeds).",
        f"The best of {n:,} runs of the baseline is expected {fixed(luck, d)} {snapshot.direction.better_side} their "
        f"mean, so chance may explain {share} of the gain.",
    ]


def _confirmation_sentence(snapshot: Snapshot, confirmations: Sequence[RelatedStudy]) -> str:
    if not confirmations:
        return (
            "The result is not confirmed. The best of many noisy trials looks better than it is. "
            f"`{command_line('hpo', 'confirm', '--study', snapshot.name)}` re-runs it and the baseline on new seeds."
        )
    return " ".join(f"Re-run on new seeds ({study.snapshot.name}): {_short_verdict(study)}." for study in confirmations)


def _short_verdict(study: RelatedStudy) -> str:
    """Return the verdict on each arm of a confirmation in a few words."""
    snapshot = study.snapshot
    if not has_ended(snapshot):
        total = sum(snapshot.slots.values())
        done = f"not finished, {trial_counts(snapshot)['complete']} of {total} runs are complete"
        return "; ".join([done, *look_lines(snapshot)])
    phrases = [
        f"{r['arm']} {_verdict_words(r['verdict'])}"
        + (f" by {abs(r['difference']):.4g}" if r["verdict"] in ("better", "worse") else "")
        + (f" after {r['pairs']} of at most {r['at_most']} pairs" if r.get("pairs") else "")
        for r in study.table[1:]
    ]
    return "; ".join(phrases or study.verdicts) or "no verdict yet"


def _verdict_words(label: str) -> str:
    return "shows no gain" if label == "no gain shown" else f"is {label}"


def _pruning_sentence(snapshot: Snapshot) -> str:
    """Return how much training the pruner saved, "" where it stopped no trial."""
    pruned = [t for t in snapshot.own if t.state == State.PRUNED]
    if not pruned:
        return ""
    saved = sum(snapshot.rungs - (t.last_step or 0) for t in pruned)
    trained = sum(t.last_step or 0 for t in snapshot.own)
    share = saved / (saved + trained) if saved + trained else 0.0
    tokens = token_counts(snapshot)["saved_by_pruning"]
    amount = f"{saved:,} rungs" if tokens is None else f"{tokens:,} tokens"
    n, total = len(pruned), len(snapshot.own)
    trials = f"{n:,} of {total:,} trials" if n > 1 else f"one of {total} trials"
    return f"Pruning stopped {trials} early and saved {amount}, {share:.0%} of the training of all trials."


def _arm_verdicts(snapshot: Snapshot) -> list[str]:
    first, *others = compare_arms(snapshot)
    sentences = []
    for arm in others:
        sentence = f"{arm.arm}: {arm.verdict}"
        if arm.difference is not None and arm.p is not None:
            d = arm.difference
            sentence += (
                f": {d.mean:+.4f} against {first.arm} ({d.low:+.4f} to {d.high:+.4f}, p {arm.p:.2g}, {d.n} pairs)"
            )
        sentences.append(sentence)
    return sentences


def _arms_headline(snapshot: Snapshot) -> str:
    first, *others = compare_arms(snapshot)
    if not others:
        if first.mean is None:
            return "No run is complete."
        sd = f", standard deviation {format_number(first.sd)}" if first.sd is not None else ""
        return f"{first.arm}: {format_number(first.mean)}{sd}, {first.n} runs."
    groups: dict[str, list[str]] = {}
    for arm in others:
        groups.setdefault(arm.verdict, []).append(arm.arm)
    verdicts = [f"{label}: {', '.join(names)}" for label, names in sorted(groups.items())]
    return f"Compared with {first.arm} on {len(snapshot.spec['seeds'])} seeds each: {'; '.join(verdicts)}."

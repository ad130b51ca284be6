"""The verdict on a claim follows the rule of the ledger, tested by manual calculations and a slow implementation."""

import math
import random
import statistics
from typing import Any

import pytest
from scipy import stats

from hpo.evidence.claims.schema import ArmsTest, LedgerClaim
from hpo.evidence.claims.verdict import ClaimVerdict, decide_verdict


def claim(effect: dict[str, Any] | None = None, **test: Any) -> LedgerClaim:
    arms = {} if "factors" in test else {"arms": {"a": {}, "b": {"optimizer.lr": 1e-2}, "c": {"optimizer.lr": 1e-1}}}
    return LedgerClaim.model_validate({
        "claim": "b is better",
        "report": "S009",
        "effect": {"text": "much"} | (effect or {}),
        "known": {"how": ["expected"]},
        "test": {"base": "mine", "equal": "tokens", "metric": "val_loss"} | arms | test,
    })  # fmt: skip


def share(value: float, within: float | None = None) -> dict[str, Any]:
    return {"value": value, "unit": "share", "within": within}


def runs(**arms: list[float | None]) -> dict[str, dict[int, float | None]]:
    return {name: dict(enumerate(scores)) for name, scores in arms.items()}


def ends(verdict: ClaimVerdict) -> list[float | None]:
    return [verdict.effect, verdict.low, verdict.high]


# Shares -0.10, -0.11, -0.09: mean -0.1, standard deviation 0.01, half the interval 4.30265 * 0.01 / sqrt(3) = 0.024841
LOWER = runs(a=[4.0, 4.0, 2.0], b=[3.6, 3.56, 1.82], c=[1.0, 1.0, 1.0])
TENTH = [-0.1, -0.124841, -0.075159]


@pytest.mark.parametrize(("effect", "verdict"), [
    ({}, "holds"),  # the better direction, of no size
    (share(-0.1), "holds"),  # contains the claimed size
    (share(-0.05), "holds"),  # lies beyond it
    (share(-0.12), "holds"),
    (share(-0.13), "holds in part"),  # all of it short of it
    (share(0.1), "refuted"),  # the other side
    (share(0, 0.13), "holds"),  # inside plus and minus within
    (share(0, 0.1), "not shown"),
    (share(0, 0.07), "refuted"),  # outside
])  # fmt: skip
def test_interval_that_excludes_zero_is_judged_by_side_and_size(effect: dict[str, Any], verdict: str) -> None:
    result = decide_verdict(claim(effect), LOWER)
    assert ends(result) == pytest.approx(TENTH, abs=1e-6)
    assert (result.n, result.unit, result.verdict, result.note) == (3, "share", verdict, "")


def test_interval_that_contains_zero_shows_nothing_whatever_its_size() -> None:
    # shares -0.2, 0, -0.1: mean -0.1, standard deviation 0.1, half 0.24841
    result = decide_verdict(claim(share(-0.1)), runs(a=[1.0, 1.0, 1.0], b=[0.8, 1.0, 0.9]))
    assert ends(result) == pytest.approx([-0.1, -0.348414, 0.148414], abs=1e-6)
    assert result.verdict == "not shown"


@pytest.mark.parametrize(("metric", "verdict"), [
    ("val_loss", "refuted"), ("val_bpb", "refuted"), ("kurtosis", "refuted"), ("clipped", "refuted"),
    ("tokens_per_second", "holds"), ("finished", "holds"),
])  # fmt: skip
def test_without_a_value_the_better_direction_is_claimed(metric: str, verdict: str) -> None:
    result = decide_verdict(claim(metric=metric), runs(a=[1.0, 1.0, 1.0], b=[2.0, 2.1, 1.9]))
    assert result.verdict == verdict
    assert result.effect == pytest.approx(1.0)


def test_kurtosis_and_what_may_be_zero_are_compared_by_differences() -> None:
    # differences -1, -2, -3: mean -2, standard deviation 1, half 4.30265 / sqrt(3) = 2.484138
    result = decide_verdict(claim(metric="kurtosis"), runs(a=[0.0, 1.0, 10.0], b=[-1.0, -1.0, 7.0]))
    assert ends(result) == pytest.approx([-2, -4.484138, 0.484138], abs=1e-6)
    assert (result.unit, result.verdict) == ("difference", "not shown")


def test_equal_differences_are_an_interval_of_no_width() -> None:
    result = decide_verdict(claim(metric="finished"), runs(a=[0.0, 0.0, 0.0], b=[1.0, 1.0, 1.0]))
    assert (ends(result), result.verdict) == ([1, 1, 1], "holds")
    result = decide_verdict(claim(metric="finished"), runs(a=[1.0, 1.0, 1.0], b=[1.0, 1.0, 1.0]))
    assert (ends(result), result.verdict) == ([0, 0, 0], "not shown")


def test_where_runs_diverged_those_that_finish_are_compared() -> None:
    lost = runs(a=[None, None, None], b=[3.0, 3.0, 3.0], c=[3.0, None, 3.0])
    result = decide_verdict(claim(share(-0.1)), lost)
    assert (ends(result), result.unit, result.verdict) == ([1, 1, 1], "finished", "holds")
    assert result.note == "runs that diverged, of 3 per arm: 3 of a; the verdict compares which runs finish"
    assert (
        decide_verdict(claim(share(0.1)), lost).verdict == "refuted"
    )  # a rise is claimed, and the other arm rose without end
    assert (
        decide_verdict(claim(share(-0.1), claimed="c"), runs(a=[3.0] * 3, b=[3.0] * 3, c=[None] * 3)).verdict
        == "refuted"
    )
    # finished 0, 0, -1: mean -1/3, standard deviation 1/sqrt(3), half 4.30265 / 3 = 1.434218
    result = decide_verdict(claim(share(-0.1), claimed="c"), runs(a=[4.0] * 3, b=[None] * 3, c=[3.0, 3.0, None]))
    assert ends(result) == pytest.approx([-1 / 3, -1.767551, 1.100884], abs=1e-6)
    assert result.verdict == "not shown"


def test_runs_of_other_arms_that_diverged_do_not_enter() -> None:
    assert decide_verdict(claim(share(-0.1)), LOWER | runs(c=[None, None, None])) == decide_verdict(
        claim(share(-0.1)), LOWER
    )


def test_nothing_changes_where_no_arm_diverged_or_both_did_alike() -> None:
    assert decide_verdict(claim(share(0, 0.01)), runs(a=[None, 1.0, 1.0], b=[None, 2.0, 2.0])).verdict == "holds"
    assert decide_verdict(claim(share(0, 0.01)), runs(a=[1.0, 1.0, 1.0], b=[None] * 3)).verdict == "refuted"


# 2.30, 2.32, 2.34: mean 2.32, standard deviation 0.02, half 0.049683, so from 2.270317 to 2.369683
@pytest.mark.parametrize(("value", "verdict"), [
    (2.37, "holds"), (2.3697, "holds"), (2.369, "not shown"), (2.34, "not shown"), (2.271, "not shown"),
    (2.27, "refuted"), (1.9, "refuted"),
])  # fmt: skip
def test_level_is_judged_by_the_claimed_arm_alone(value: float, verdict: str) -> None:
    result = decide_verdict(claim({"value": value, "unit": "level"}), runs(a=[None] * 3, b=[2.30, 2.32, 2.34]))
    assert ends(result) == pytest.approx([2.32, 2.270317, 2.369683], abs=1e-6)
    assert (result.unit, result.verdict) == ("level", verdict)


def test_level_of_runs_that_diverged_is_not_shown() -> None:
    result = decide_verdict(claim({"value": 9.0, "unit": "level"}), runs(a=[1.0] * 3, b=[2.0, None, 2.0]))
    assert (result.effect, result.verdict, result.note) == (
        None,
        "not shown",
        "1 of 3 runs diverged, so there is no level to compare",
    )


CROSSED: dict[str, Any] = {
    "contrast": "interaction",
    "factors": {"optimizer.lr": [0.1, 0.3, 0.2], "clip": {"norm": {}, "none": {"clip.name": "none"}}},
}
FIRST, LR, CLIP = "optimizer.lr=0.1, clip=norm", "optimizer.lr=0.2, clip=norm", "optimizer.lr=0.1, clip=none"
BOTH, MIDDLE = "optimizer.lr=0.2, clip=none", "optimizer.lr=0.3, clip=norm"


def test_interaction_is_all_at_their_last_levels_less_what_each_does_alone() -> None:
    # alone -0.1 and -0.2, together -0.5, -0.51, -0.49: the interaction is -0.2, -0.21, -0.19, half 0.024841
    scores = {FIRST: [2.0, 1.0, 1.0], LR: [1.8, 0.9, 0.9], CLIP: [1.6, 0.8, 0.8], BOTH: [1.0, 0.49, 0.51]}
    result = decide_verdict(claim(**CROSSED), runs(**scores, **{MIDDLE: [None, None, None]}))  # type: ignore[arg-type]
    assert ends(result) == pytest.approx([-0.2, -0.224841, -0.175159], abs=1e-6)
    assert result.verdict == "holds"
    assert decide_verdict(claim(**CROSSED), runs(**scores | {BOTH: [1.4, 0.71, 0.69]})).verdict == "not shown"  # type: ignore[arg-type]
    assert decide_verdict(claim(**CROSSED), runs(**scores | {BOTH: [1.8, 0.91, 0.9]})).verdict == "refuted"  # type: ignore[arg-type]


def test_interaction_of_runs_that_diverged_is_one_of_those_that_finish() -> None:
    lost: Any = {FIRST: [1.0] * 3, LR: [1.0] * 3, CLIP: [1.0] * 3, BOTH: [None] * 3}
    result = decide_verdict(claim(**CROSSED), runs(**lost))
    assert (ends(result), result.unit, result.verdict) == ([-1, -1, -1], "finished", "refuted")


def test_factors_that_are_tuned_are_no_part_of_the_names_that_are_judged() -> None:
    test = claim(tuned=["optimizer.lr"], factors=CROSSED["factors"]).test
    assert isinstance(test, ArmsTest)
    assert test.compared_arms() == {
        f"clip={c}": [f"optimizer.lr={lr}, clip={c}" for lr in (0.1, 0.3, 0.2)] for c in ("norm", "none")
    }
    assert test.contrast_terms() == {"clip=none": 1}


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_pairs_are_not_judged(n: int) -> None:
    scores: Any = {"a": [2.0, 2.0, 2.0], "b": [1.0] * n}
    assert decide_verdict(claim(share(-0.1)), runs(**scores)).verdict == "not run yet"
    assert decide_verdict(claim({"value": 9.0, "unit": "level"}), runs(**scores)).verdict == "not run yet"
    assert decide_verdict(claim(share(-0.1)), {}).n == 0


def test_pairs_are_runs_of_one_seed() -> None:
    result = decide_verdict(claim(), {"a": {0: 1.0, 1: 2.0, 2: 4.0, 9: 1.0}, "b": {2: 2.0, 1: 1.0, 0: 0.5, 8: 7.0}})
    assert (ends(result), result.n) == ([-0.5, -0.5, -0.5], 3)


def slow(value: float | None, within: float | None, one: list[float], other: list[float]) -> str:
    """Return the verdict by checking the rule on a fine grid of points, with moments calculated directly."""
    shares = [(b - a) / a for a, b in zip(one, other, strict=True)]
    half = stats.t.ppf(0.975, len(shares) - 1) * statistics.stdev(shares) / math.sqrt(len(shares))
    inside = [statistics.fmean(shares) + half * (i / 200 - 1) for i in range(401)]
    if value == 0:
        small = [abs(x) <= within for x in inside]  # type: ignore[operator]
        return "holds" if all(small) else "not shown" if any(small) else "refuted"
    claimed = [x * (1 if value is not None and value > 0 else -1) for x in inside]
    if any(x <= 0 for x in claimed) and any(x >= 0 for x in claimed):
        return "not shown"
    if all(x < 0 for x in claimed):
        return "refuted"
    return "holds" if any(x >= abs(value or 0) for x in claimed) else "holds in part"


def test_verdicts_are_those_of_the_rule_walked_through_slowly() -> None:
    drawn = random.Random(0)
    seen: set[str] = set()
    for _ in range(400):
        n, shift = drawn.randint(3, 6), drawn.choice([-0.1, -0.03, 0, 0.05])
        one = [drawn.gauss(3, 0.1) for _ in range(n)]
        other = [a * (1 + shift + drawn.gauss(0, 0.02)) for a in one]
        value, within = drawn.choice([(None, None), (-0.05, None), (-0.15, None), (0.05, None), (0, 0.03), (0, 0.08)])
        effect = {} if value is None else share(value, within)
        result = decide_verdict(claim(effect), {"a": dict(enumerate(one)), "b": dict(enumerate(other))})
        assert result.verdict == slow(value, within, one, other), (effect, one, other)
        seen.add(result.verdict)
    assert seen == {"holds", "holds in part", "not shown", "refuted"}

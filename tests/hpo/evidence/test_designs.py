"""Two-level designs, against least squares over the same runs."""

import itertools

import numpy as np
import pytest

from hpo.evidence.designs import factorial_contrasts, two_level_design

NAMES = "ABCDEFGHIJKLMNOP"


@pytest.mark.parametrize("n", range(1, 17))
def test_design_is_balanced_and_no_main_effect_is_mixed_up_with_another_or_with_an_interaction_of_two(n: int) -> None:
    runs = np.array(two_level_design(n))
    assert runs.shape == (2 ** min(n, 5), n)
    assert len({tuple(run) for run in runs}) == len(runs)
    assert set(runs[0]) == {-1}
    assert set(runs[-1]) == {1}
    assert not runs.sum(axis=0).any()
    for i, j in itertools.combinations(range(n), 2):
        assert runs[:, i] @ runs[:, j] == 0
        for k in range(n):
            assert (runs[:, i] * runs[:, j]) @ runs[:, k] == 0 or k in (i, j)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 9])
def test_contrasts_are_the_coefficients_of_least_squares(n: int) -> None:
    runs, draw = np.array(two_level_design(n)), np.random.default_rng(n)
    values = draw.normal(size=len(runs))
    estimates = {
        name: sum(w * values[r] for r, w in weights.items()) for name, weights in factorial_contrasts(NAMES[:n]).items()
    }
    columns = {NAMES[i]: runs[:, i] for i in range(n)}
    for name in estimates:
        if " x " in name:
            a, b = name.split(" = ")[0].split(" x ")
            columns[name] = columns[a] * columns[b]
    matrix = np.stack([np.ones(len(runs)), *(columns[name] for name in estimates)], axis=1)
    coefficients = np.linalg.lstsq(matrix, values)[0][1:]
    # a factor goes from -1 to +1, so its effect is twice its coefficient
    assert list(estimates.values()) == pytest.approx(list(2 * coefficients))


def test_interactions_that_the_runs_cannot_tell_apart_bear_all_their_names() -> None:
    runs, names = np.array(two_level_design(7)), NAMES[:7]
    mixed = [name for name in factorial_contrasts(names) if " = " in name]
    assert mixed
    for name in mixed:
        pairs = [pair.split(" x ") for pair in name.split(" = ")]
        first, *others = [runs[:, names.index(a)] * runs[:, names.index(b)] for a, b in pairs]
        assert all((first == other).all() for other in others)
    assert not [name for name in factorial_contrasts(NAMES[:6]) if " = " in name], "six factors are of resolution VI"


def test_interaction_is_half_of_what_one_factor_does_with_the_other_less_without() -> None:
    values = {(-1, -1): 3.0, (1, -1): 2.8, (-1, 1): 3.1, (1, 1): 2.5}
    weights = factorial_contrasts("AB")["A x B"]
    estimates = sum(w * values[two_level_design(2)[r]] for r, w in weights.items())
    assert estimates == pytest.approx(((2.5 - 3.1) - (2.8 - 3.0)) / 2)


def test_more_than_sixteen_factors_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 16 factors, got 17"):
        two_level_design(17)

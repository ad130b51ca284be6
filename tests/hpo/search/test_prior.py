"""Priors: the distribution of what follows them, the share that does not, and what a wrong one is answered."""

import math
import random
from collections import Counter
from typing import Any

import optuna
import pytest
import scipy.integrate
import scipy.stats
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, TypeAdapter, ValidationError

from hpo.search.prior import FIRST_SHARE, SPREAD, density, quantile, share
from hpo.search.prior_draws import PriorDraws
from hpo.search.ranges import Space, is_inside
from hpo.search.samplers import Sampler, build_sampler
from hpo.search.space import suggest_values
from tests.support.cases import exhaustive


class Config(BaseModel):
    lr: float = 1e-2
    beta2: float = 0.95
    layers: int = 4
    dropout: float = 0.0
    norm: str = "layer"


STRONG = {
    "lr": {"low": 1e-4, "high": 1e-1, "log": True, "prior": {"at": 3e-3, "trust": "strong"}},
    "beta2": {"low": 0.8, "high": 0.999, "complement_log": True, "prior": {"at": 0.99, "trust": "strong"}},
    "layers": {"low": 1, "high": 12, "prior": {"at": 6, "trust": "strong"}},
    "dropout": {"low": 0.0, "high": 0.3, "step": 0.1, "prior": {"at": 0.1, "trust": "strong"}},
    "norm": {"choices": ["layer", "rms", "none"], "prior": {"at": "rms", "trust": "strong"}},
}
KINDS = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "beta2": FloatDistribution(0.8, 0.999),
    "layers": IntDistribution(1, 12),
    "dropout": FloatDistribution(0.0, 0.3, step=0.1),
    "norm": CategoricalDistribution(["layer", "rms", "none"]),
}


def space(entries: dict[str, Any]) -> Space:
    return TypeAdapter(Space).validate_python(entries)


@pytest.mark.parametrize("centre", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spread", [*SPREAD.values(), 5.0])
def test_distribution_is_the_truncated_normal_of_scipy(centre: float, spread: float) -> None:
    exact = scipy.stats.truncnorm(-centre / spread, (1 - centre) / spread, loc=centre, scale=spread)
    for position in (0.0, 0.1, 0.5, 0.97, 1.0):
        assert density(position, centre, spread) == pytest.approx(exact.pdf(position), rel=1e-9)
    for probability in (0.001, 0.25, 0.5, 0.999):
        assert quantile(probability, centre, spread) == pytest.approx(exact.ppf(probability), abs=1e-6)
    assert [density(x, centre, spread) for x in (-0.01, 1.01)] == [0.0, 0.0]
    assert 0 <= quantile(0.0, centre, spread) < quantile(1.0, centre, spread) <= 1
    assert scipy.integrate.quad(density, 0, 1, (centre, spread), points=[centre])[0] == pytest.approx(1)


def test_draws_lie_around_the_value_on_the_scale_of_the_range() -> None:
    drawn = [PriorDraws(space(STRONG), seed).draw(0, KINDS) for seed in range(1200)]
    lr = [math.log10(values["lr"]) for values in drawn if values]
    exact = scipy.stats.truncnorm(-4.924, 5.076, loc=-2.5228787, scale=0.3)  # 3e-3, a tenth of three decades
    assert scipy.stats.kstest(lr, exact.cdf).pvalue > 0.01
    assert all(is_inside(KINDS[name], value) for values in drawn for name, value in values.items())
    beta2 = sorted(values["beta2"] for values in drawn if values)
    assert beta2[len(beta2) // 2] == pytest.approx(0.99, abs=0.001)
    assert {type(values["layers"]) for values in drawn if values} == {int}
    assert {values["norm"] for values in drawn if values} == {"rms"}
    dropout = Counter(values["dropout"] for values in drawn if values)
    assert dropout.keys() <= {0.0, 0.1, 0.2, 0.3}
    assert dropout.most_common(1)[0][0] == 0.1


@pytest.mark.parametrize("trust", [exhaustive("weak"), "strong"])
def test_a_share_of_the_trials_never_follows_a_prior_and_the_share_grows(trust: str) -> None:
    entries = {"lr": {"low": 1e-4, "high": 1e-1, "log": True, "prior": {"at": 3e-3, "trust": trust}}}
    for number in (0, 30, 300):
        followed = sum(bool(PriorDraws(space(entries), seed).followed(number)) for seed in range(2000)) / 2000
        assert followed == pytest.approx(share(trust, number), abs=0.04)
        assert followed < FIRST_SHARE[trust] + 0.04 <= 0.8
    assert share(trust, 300) < share(trust, 30) < share(trust, 0)


@pytest.mark.parametrize("name", ["auto", "tpe", "random", "gp", "cmaes", "qmc", "nsga2"])
def test_every_sampler_that_proposes_follows_the_priors(name: str) -> None:
    varied, draw = space(STRONG), random.Random(0)
    study, followed = optuna.create_study(study_name="s"), 0
    for number in range(14):
        study.sampler = sampler = build_sampler(
            TypeAdapter(Sampler).validate_python({"name": name}), Config(), varied, seed=number, study_seed=0
        )
        trial = study.ask()
        values = suggest_values(trial, Config(), varied)
        names = sampler.priors.followed(number)
        followed += bool(names)
        expected = sampler.priors.draw(number, KINDS)
        assert {path: values[path] for path in names} == expected
        study.tell(trial, draw.random())
    assert 4 < followed < 14


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 0.1, "high": 0.5, "prior": {"at": 0.6}}, "prior.at must be in the range, from 0.1 to 0.5, got 0.6; "),
        ({"low": 0.1, "high": 0.5, "prior": 0.3}, "prior must be a mapping, got 0.3; use {at: 0.3}"),
        ({"low": 0.1, "high": 0.5, "prior": [0.3]}, "prior must be a mapping, got [0.3]; use {at: [0.3]}"),
        ({"low": 0.1, "high": 0.5, "prior": "log-uniform"}, "prior must not be in a range, got 'log-uniform'"),
        ({"low": 0.1, "high": 0.5, "prior": {"at": True}}, "prior.at"),
        ({"low": 0.1, "high": 0.5, "prior": {"trust": "weak"}}, "prior.at"),
        ({"low": 0.1, "high": 0.5, "prior": {"at": 0.2, "trust": "some"}}, "prior.trust"),
        ({"choices": ["a", "b"], "prior": {"at": "c"}}, "prior.at must be one of the choices, got 'c'; use one of"),
    ],
)
def test_a_wrong_prior_is_answered_with_its_key(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        space({"x": entry})
    assert message in str(caught.value).replace("\n  ", " ")


def test_a_choice_that_equals_another_type_is_the_choice_itself() -> None:
    varied = space({"x": {"choices": [True, False], "prior": {"at": 1, "trust": "strong"}}})
    kinds = {"x": CategoricalDistribution([True, False])}
    drawn = [PriorDraws(varied, seed).draw(0, kinds) for seed in range(20)]
    assert {type(values["x"]) for values in drawn if values} == {bool}

"""The improvements of the best during a search: which are below two sigma, and who says so."""

import json
from pathlib import Path

import pytest
from scipy import stats

from hpo.analysis.improvements import (
    chi2_quantile,
    improvement_lines,
    improvement_records,
    improvements,
    improvements_within_noise,
    sigma_interval,
)
from hpo.analysis.noise import Noise
from hpo.report.build import read_report, report_page
from hpo.storage.store import Store
from hpo.storage.trials import State
from tests.support.command import run_in_process
from tests.support.comparisons import run_search

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    """One kind of storage is enough for snapshots."""
    return f"sqlite:///{tmp_path}/hpo.db"


@pytest.mark.parametrize("degrees", [1, 3, 9, 40])
def test_quantiles_of_chi_squared_are_those_of_scipy(degrees: int) -> None:
    for p in (0.025, 0.5, 0.975):
        assert chi2_quantile(p, degrees) == pytest.approx(stats.chi2.ppf(p, degrees), rel=1e-9)


def test_interval_of_sigma_is_that_of_a_normal_variance() -> None:
    """Source: the standard interval for a variance; for four values with s = 1 it is 0.566 to 3.729."""
    floor = Noise(4, 0.0, 1.0 / 0.921318)  # sigma is s / c4(4)
    assert sigma_interval(floor) == pytest.approx((0.5665, 3.7285), rel=1e-3)


def test_each_new_best_is_compared_with_the_best_before_it(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {"noise": 0.1}, baseline_seeds=4, budget={"trials": 16})
    assert snapshot.noise is not None
    by_end = sorted((t for t in snapshot.trials if t.state == State.COMPLETE), key=lambda t: t.ended or 0)
    values = [(t.number, t.values[0]) for t in by_end if t.user_attrs["kind"] != "seed"]
    expected = [
        (number, min(v for _, v in values[:i]) - value)
        for i, (number, value) in enumerate(values)
        if i and value < min(v for _, v in values[:i])
    ]
    steps = improvements(snapshot)
    assert [(step.trial, step.gain) for step in steps] == expected
    small = [number for number, gain in expected if gain < 2 * snapshot.noise.sigma]
    assert [step.trial for step in improvements_within_noise(steps)] == small
    assert 0 < len(small) < len(expected), "the case shows both kinds"
    (line,) = improvement_lines(snapshot)
    assert line.startswith(f"{len(small)} of {len(expected)} improvements of the best are below two sigma: do not read")
    assert f"trial{'s' * (len(small) > 1)} {', '.join(map(str, small))}; sigma 0." in line
    assert " from 4 seeds, between 0.0" in line
    url = f"sqlite:///{here}/hpo.db"
    assert line in run_in_process("status", "--study", "planted", "--storage", url, cwd=here)
    status = json.loads(run_in_process("status", "--study", "planted", "--storage", url, "--format", "json", cwd=here))
    assert status["improvements"] == improvement_records(snapshot)
    page = report_page(read_report(store, "planted"), here / "runs")
    assert f"{line[0].upper()}{line[1:]}." in page
    assert "improvement below 2σ" in page or "improvement below 2\\u03c3" in page


def test_nothing_is_reported_where_the_baseline_ran_with_one_seed(here: Path, store: Store) -> None:
    unknown = run_search(store, here, {}, budget={"trials": 4})
    assert improvement_lines(unknown) == improvement_records(unknown) == []

"""The noise floor: its computation from the runs of the baseline, and the decimals and sigmas that follow from it."""

import csv
import io
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from scipy import stats
from scipy.special import gammaln

from hpo.analysis.noise import Noise, c4, decimals, expected_minimum, noise_floor, unbiased_stdev
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.summary import best_summary, summary, trial_columns
from hpo.cli.main import app
from hpo.config.yaml import parse_yaml
from hpo.console import Format, Rounded, format_number, json_value, print_records
from hpo.queue.budget import add_slots
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.storage.engine import open_readonly
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.view.live import LiveView
from hpo.worker.events import event_line
from hpo.worker.worker import Worker
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")

NOISY: dict[str, Any] = {"base": {"noise": 0.1}, "baseline_seeds": 4, "budget": {"trials": 6}}


def began(store: Store, folder: Path, **keys: Any) -> StoredStudy:
    return register_study(store, load_study(str(planted(folder, **NOISY | keys))), None, {})


def work(stored: StoredStudy, turns: float = math.inf) -> int:
    return Worker(stored, Path("runs"), 1, lambda event: None).work(turns)


def seen(store: Store) -> Snapshot:
    return read_snapshot(store, "planted")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    app(arguments, standalone_mode=False)
    return capsys.readouterr().out


def test_sigma_is_the_unbiased_one_of_the_runs_of_the_baseline(here: Path, store: Store) -> None:
    assert work(began(store, here)) == 0
    of = seen(store)
    runs = [t for t in of.trials if t.user_attrs["kind"] in ("baseline", "seed")]
    assert [t.number for t in runs] == [0, 1, 2, 3]
    floor = of.noise
    assert floor is not None
    c4 = math.sqrt(2 / 3) * math.gamma(2) / math.gamma(1.5)
    ends = [t.values[0] for t in runs]
    assert (floor.n, floor.mean) == (4, pytest.approx(np.mean(ends)))
    assert floor.sigma == pytest.approx(np.std(ends, ddof=1) / c4)
    for rung in (1, 2, 3, 4):
        at_rung = [t.intermediate_values[rung] for t in runs]
        assert floor.curve[rung] == pytest.approx((np.mean(at_rung), np.std(at_rung, ddof=1) / c4))
    assert noise_floor(of.baseline_runs) == floor


def test_noise_includes_each_run_of_the_baseline_as_soon_as_it_ends(here: Path, store: Store) -> None:
    at, found = began(store, here), []
    assert summary(seen(store))["noise"] is None
    for _ in range(6):
        work(at, turns=1)
        floor = seen(store).noise
        found.append(floor and floor.n)
    assert found == [None, 2, 3, 4, 4, 4]


def test_workers_store_no_noise_and_a_stored_one_of_an_older_version_is_ignored(here: Path, store: Store) -> None:
    stored = began(store, here)
    work(stored)
    floor = seen(store).noise
    assert "hpo:noise" not in stored.optuna.user_attrs
    old = {"n": 4, "mean": 9.0, "sigma": 9.0, "curve": {"1": [9.0, 9.0]}}
    stored.optuna.set_user_attr("hpo:noise", old)
    assert seen(store).noise == floor
    assert work(register_study(store, stored.study, None, {})) == 0


@pytest.mark.parametrize("n", [2, 3, 4, 8, 100])
def test_correction_of_the_standard_deviation_is_that_of_scipy(n: int) -> None:
    expected = math.sqrt(2 / (n - 1)) * math.exp(gammaln(n / 2) - gammaln((n - 1) / 2))
    assert c4(n) == pytest.approx(expected, rel=1e-15)
    assert c4(n) == pytest.approx(stats.chi.mean(n - 1) / math.sqrt(n - 1), rel=1e-12)
    draw = random.Random(n)
    values = [draw.gauss(3.0, 0.5) for _ in range(n)]
    assert unbiased_stdev(values) == pytest.approx(np.std(values, ddof=1) / expected, rel=1e-13)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_standard_deviation_is_unbiased(n: int) -> None:
    draw = random.Random(n)
    found = [unbiased_stdev([draw.gauss(3.0, 0.5) for _ in range(n)]) for _ in range(8_000)]
    assert np.mean([s for s in found if s is not None]) == pytest.approx(0.5, rel=0.03)
    assert unbiased_stdev([1.0]) is None
    assert unbiased_stdev([]) is None


@pytest.mark.parametrize("n", [1, 5, 24, 100])
def test_expected_minimum_is_the_mean_of_the_smallest_of_so_many_draws(n: int) -> None:
    smallest = np.random.default_rng(0).normal(3.0, 0.1, (20_000, n)).min(axis=1).mean()
    assert expected_minimum(n, 3.0, 0.1) == pytest.approx(smallest, abs=0.003)
    assert expected_minimum(n, 3.0, 0.1) == pytest.approx(3.0 + 0.1 * stats.norm.ppf(0.625 / (n + 0.25)), rel=1e-14)


def test_run_that_failed_and_its_retry_are_one_run_of_the_baseline(here: Path, store: Store) -> None:
    stored = began(store, here, budget={"trials": 4}, pruner={"name": "none"})
    work(stored)
    study_id, lucky = stored.optuna._study_id, seen(store).trials[1]
    add_slots(stored.slots, [("retry", {"x": 0.5, "seed": 77}, lucky.number)])
    work(stored)
    retried = seen(store).trials[-1]
    assert (retried.user_attrs["kind"], len(seen(store).baseline_runs)) == ("retry", 5)
    assert [t.number for t in seen(store).feasible] == [0], "more luck is not a better configuration"
    assert store.optuna.get_n_trials(study_id, TrialState.COMPLETE) == 5


def test_study_without_repeats_has_no_noise_and_no_column_of_sigmas(here: Path, store: Store) -> None:
    work(began(store, here, baseline_seeds=1))
    of = seen(store)
    assert of.noise is None
    assert "noise" not in summary(of)
    assert "sigmas" not in trial_columns(of, of.trials[0])
    assert "±" not in best_summary(of)


@pytest.mark.parametrize(
    ("sigma", "n"), [(15.0, 0), (1.5, 1), (0.11, 2), (0.011, 3), (0.0996, 3), (2e-7, 8), (1e-16, 12), (0.0, 4)]
)
def test_decimals_go_to_the_second_digit_of_sigma(sigma: float, n: int) -> None:
    assert decimals(sigma) == n


def test_sigmas_compare_a_run_with_the_baseline_at_the_rung_where_it_ended(here: Path, store: Store) -> None:
    work(began(store, here, budget={"trials": 16}))
    of = seen(store)
    floor = of.noise
    assert floor is not None
    states = set()
    for trial in of.trials:
        mean, sigma = (floor.mean, floor.sigma) if trial.state == State.COMPLETE else floor.curve[trial.last_step or 0]
        assert trial_columns(of, trial)["sigmas"] == pytest.approx((mean - trial.values[0]) / sigma)
        states.add(trial.state)
    assert states == {State.COMPLETE, State.PRUNED}


DIVERGED = """

def diverging(config):
    yield 1, 2.0 + config.x
    yield 2, float("nan") if config.x != 0.5 else 1.9 + 0.01 * config.seed
    yield 3, 1.5
    yield 4, 1.2 + 0.01 * config.seed
"""


def test_run_without_a_finite_loss_at_its_last_rung_lies_no_sigmas_away(here: Path, store: Store) -> None:
    path = planted(here, **NOISY, train="curves:diverging")
    with (here / "curves.py").open("a") as module:
        module.write(DIVERGED)
    work(register_study(store, load_study(str(path)), None, {}))
    of = seen(store)
    last = trial_columns(of, of.trials[-1])
    assert (last["state"], last["sigmas"]) == ("diverged", None)
    assert trial_columns(of, of.trials[1])["sigmas"] is not None


def test_people_see_the_digits_that_noise_leaves_and_programs_all(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store(f"sqlite:///{here}/runs/hpo.db", create=True) as store:
        work(began(store, here))
        of = seen(store)
    floor = of.noise
    assert floor is not None
    best = of.best()
    assert best is not None
    d = decimals(floor.sigma)
    assert d in (2, 3)
    said = f"baseline {floor.mean:.{d}f} ± {floor.sigma:.{d}f} (4 seeds)"
    assert said in printed(capsys, "status")
    assert f"val_loss {best.values[0]:.{d}f} (" in printed(capsys, "status")
    table = printed(capsys, "trials").splitlines()
    assert table[0].split()[4:6] == ["val_loss", "sigmas"]
    assert table[1].split()[4] == f"{of.trials[0].values[0]:.{d}f}"
    shown = dict(line.split(None, 1) for line in printed(capsys, "best").splitlines())
    assert shown["val_loss"] == shown["curve.4"] == shown["metrics.val_loss"] == f"{best.values[0]:.{d}f}"
    assert shown["baseline.sigma"] == f"{floor.sigma:.{d}f}"

    exact = [t.values[0] for t in of.trials]
    assert [
        float(r["val_loss"]) for r in csv.DictReader(io.StringIO(printed(capsys, "trials", "--format", "csv")))
    ] == exact
    assert [r["val_loss"] for r in json.loads(printed(capsys, "trials", "--format", "json"))] == exact
    assert [r["val_loss"] for r in parse_yaml(printed(capsys, "trials", "--format", "yaml"))] == exact
    assert json.loads(printed(capsys, "status", "--format", "json"))["noise"] == {
        "n": 4, "mean": floor.mean, "sigma": floor.sigma
    }  # fmt: skip
    assert json.loads(printed(capsys, "best", "--format", "json"))["baseline"]["sigma"] == floor.sigma


def test_live_view_shows_values_with_the_digits_that_the_noise_leaves(here: Path, store: Store) -> None:
    work(began(store, here))
    of = seen(store)
    screen = LiveView(of, 1)
    event = {"event": "rung", "worker": 1, "trial": 3, "rung": 2, "value": 1.23456789}
    floor = of.noise
    assert floor is not None
    told = f"{1.23456789:.{decimals(floor.sigma)}f}"
    screen.show(event)
    assert any(told in line.plain.split() for line in screen.lines(120, 40))
    assert screen.summary[0] == best_summary(of)
    assert event_line(event, 4, decimals(floor.sigma)) == f"trial 3: rung 2/4, {told}"
    assert event_line(event, 4) == "trial 3: rung 2/4, 1.2346"


def test_rounded_number_is_rounded_for_people_alone(capsys: pytest.CaptureFixture[str]) -> None:
    value = Rounded(1234.56789, 2)
    assert format_number(value) == "1,234.57"
    assert type(json_value({"a": [value]})["a"][0]) is float
    print_records([{"a": value}], Format.csv)
    assert capsys.readouterr().out == "a\n1234.56789\n"


def test_noise_is_computed_without_scipy(here: Path) -> None:
    with open_store("sqlite:///runs/hpo.db", create=True) as store:
        work(began(store, here))
    program = """
import sys
from hpo.analysis.snapshot import read_snapshot
from hpo.analysis.summary import best_summary, summary, trial_columns
from hpo.storage.engine import open_readonly
with open_readonly("runs/hpo.db") as store:
    snapshot = read_snapshot(store, None)
    assert summary(snapshot)["noise"]["n"] == 4 and "4 seeds" in best_summary(snapshot)
    assert trial_columns(snapshot, snapshot.trials[0])["sigmas"] and len(snapshot.noise.curve) == 4
print(sorted({name.split(".")[0] for name in sys.modules} & {"optuna", "torch", "model", "scipy", "numpy"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_status_of_a_study_with_noise_loads_neither_scipy_nor_torch_nor_optuna(here: Path) -> None:
    with open_store("sqlite:///runs/hpo.db", create=True) as store:
        work(began(store, here, budget={"trials": 10}))  # more trials are to run, so that no warning is tested for
    program = """
import sys
from hpo.cli.main import app
app(["status"], standalone_mode=False)
print(sorted({name.split(".")[0] for name in sys.modules} & {"optuna", "torch", "model", "scipy", "numpy"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "(4 seeds)" in done.stdout
    assert (done.stdout.splitlines()[-1], done.stderr) == ("[]", "")


def test_equal_runs_have_no_spread_and_no_sigmas(here: Path, store: Store) -> None:
    work(began(store, here, base={}))
    of = seen(store)
    floor = of.noise
    assert floor is not None
    assert floor == Noise(4, 1.5, 0.0)
    assert floor.curve == {rung: (pytest.approx(2.5 - rung / 4), 0.0) for rung in (1, 2, 3, 4)}
    assert "baseline 1.5000 ± 0.0000 (4 seeds)" in best_summary(of)
    assert trial_columns(of, of.trials[-1])["sigmas"] is None
    with open_readonly(store.url) as at:
        assert read_snapshot(at, None).noise == floor

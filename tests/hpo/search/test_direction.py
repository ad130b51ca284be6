"""Maximizing f mirrors minimizing -f: trial by trial, decision by decision, table by table."""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.analysis.decisions import decisions, recompute
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.summary import best_summary, goal_lines, summary, trial_columns
from hpo.analysis.warnings import study_warnings
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.evidence.ablate import AblateRequest, plan_ablation
from hpo.evidence.confirm import ConfirmRequest, plan_confirmation
from hpo.evidence.confirm_verdicts import confirmation_table, confirmation_verdicts
from hpo.evidence.effects import estimate_effects
from hpo.evidence.paired import compare_arms
from hpo.evidence.preferred import trial_to_export
from hpo.report.axes import axes
from hpo.report.curve_figures import history_figure, study_progress
from hpo.report.importance import importances, points_at_rung
from hpo.report.verdict import verdict
from hpo.storage.attributes import END_REASON, PRUNING_DECISION, SPEC
from hpo.storage.store import Store, open_store
from hpo.storage.trials import Trial
from hpo.study.load import load_study
from hpo.study.objections import is_maximized
from tests.support.cases import sparse
from tests.support.command import hpo
from tests.support.comparisons import run_study
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")

# A loss in steps of 0.1, so that values are often equal, times a sign. Some runs diverge, in both directions.
SIGNED = """

class Signed(Config):
    y: float = Field(default=0.5, ge=0.0, le=1.0)
    sign: int = 1
    spread: float = 0.08
    digits: int = 1


def signed(config):
    chance = random.Random(repr((config.x, config.y, config.seed)))
    for rung in range(1, config.rungs + 1):
        loss = (config.x - 0.3) ** 2 + 0.2 * config.y + 1 - rung / 40 + chance.gauss(0.0, config.spread)
        loss = round(loss, config.digits)
        if rung > 2 and config.x > 0.93:
            loss = float("inf") if config.y > 0.5 else -float("inf")
        yield rung, config.sign * loss
"""
SIGNS = {"minimize": 1, "maximize": -1}


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[dict[str, Store]]:
    """Return a storage for each direction, because the name of a study decides about brackets."""
    with (
        open_store(f"sqlite:///{tmp_path}/minimize.db", create=True) as one,
        open_store(f"sqlite:///{tmp_path}/maximize.db", create=True) as other,
    ):
        yield {"minimize": one, "maximize": other}


def write(here: Path, direction: str, keys: dict[str, Any]) -> Path:
    sign = SIGNS[direction]
    own = {"config": "curves:Signed", "train": "curves:signed", "objective": "gain", "direction": direction}
    space = {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}
    tree = own | {"rungs": 8, "space": space, "budget": {"trials": 16}} | keys
    tree["base"] = {"rungs": 8, "sign": sign, **keys.get("base", {})}
    for key in ("targets", "milestones"):
        tree[key] = {name: sign * value for name, value in keys.get(key, {}).items()}
    path = planted(here, **tree)
    (here / "curves.py").write_text((here / "curves.py").read_text() + SIGNED)
    return path


def mirrored(here: Path, stores: dict[str, Store], **keys: Any) -> tuple[Snapshot, Snapshot]:
    """Run a study and its mirror image; return both, the one that minimizes first."""
    one, other = (run_study(stores[d], load_study(str(write(here, d, keys)))) for d in SIGNS)
    assert [t.params for t in one.trials] == [t.params for t in other.trials]
    return one, other


def negated(values: Any) -> Any:
    return None if values is None else -values


def outcome(trial: Trial, sign: int) -> tuple[Any, ...]:
    """Return state, end, values and pruning decision of a trial, with the values as losses."""
    record = dict(trial.user_attrs.get(PRUNING_DECISION) or {})
    if record.get("rule") != "wilcoxon":
        record |= {key: sign * record[key] for key in ("value", "threshold") if key in record}
    curve = {rung: sign * value for rung, value in trial.intermediate_values.items()}
    return trial.state, trial.user_attrs[END_REASON], [sign * v for v in trial.values], curve, record


# The first and the fourth run every time.
SEARCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name -> sampler, pruner
    "tpe": ({"startup_trials": 5}, {"name": "median", "startup_trials": 3, "min_trials": 2, "warmup_rungs": 1}),
    "gp": ({"startup_trials": 5}, {"name": "percentile", "percentile": 60, "startup_trials": 3, "min_trials": 2}),
    "cmaes": ({"startup_trials": 3}, {"name": "halving", "min_rungs": 1, "factor": 2}),
    "nsga2": ({"population": 4}, {"name": "hyperband", "min_rungs": 1, "factor": 2}),
    "random": ({}, {"name": "wilcoxon", "warmup_rungs": 2, "p_threshold": 0.3}),
    "qmc": ({}, {"name": "patient", "patience": 1, "min_delta": 0.05}),
}


@pytest.mark.parametrize("name", sparse(SEARCHES, every=3))
def test_maximizing_makes_the_same_trials_and_decisions_as_minimizing_the_negative(
    here: Path, stores: dict[str, Store], name: str
) -> None:
    options, pruner = SEARCHES[name]
    one, other = mirrored(here, stores, sampler={"name": name, **options}, pruner=pruner)
    assert [outcome(t, 1) for t in one.trials] == [outcome(t, -1) for t in other.trials]
    pruned = [t for t in other.trials if t.user_attrs[END_REASON] == "pruned"]
    assert pruned
    assert all(again is not None and again.prunes for again in (recompute(other, t) for t in pruned))
    for trial in pruned:
        (ended,) = [d["sentence"] for d in decisions(other, trial.number) if d["decision"] == "pruned"]
        assert "above" not in ended
    assert one.best() is not None
    assert (one.best() or one.trials[0]).number == (other.best() or one.trials[0]).number


def test_a_threshold_of_a_study_that_maximizes_is_one_of_its_objective(here: Path, stores: dict[str, Store]) -> None:
    ends: dict[str, dict[str, float]] = {"minimize": {"upper": 1.2}, "maximize": {"lower": -1.2}}
    one, other = (
        run_study(stores[d], load_study(str(write(here, d, {"pruner": {"name": "threshold", **ends[d]}}))))
        for d in SIGNS
    )
    assert [outcome(t, 1) for t in one.trials] == [outcome(t, -1) for t in other.trials]
    pruned = [t for t in other.trials if t.user_attrs[END_REASON] == "pruned"]
    assert pruned
    assert all("was below the study's threshold, -1.2" in str(decisions(other, t.number)) for t in pruned)


def test_a_run_that_diverges_is_the_worst_whatever_its_sign(here: Path, stores: dict[str, Store]) -> None:
    keys = {"sampler": {"name": "tpe", "startup_trials": 4, "multivariate": True}, "pruner": {"name": "none"}}
    space = {"x": {"low": 0.85, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}
    one, other = mirrored(here, stores, **keys, space=space, budget={"trials": 18})
    for snapshot in (one, other):
        ends = [t.user_attrs[END_REASON] for t in snapshot.trials]
        signs = {math.copysign(1, t.intermediate_values[3]) for t in snapshot.trials if ends[t.number] == "diverged"}
        assert signs == {1, -1}
        assert set(ends) == {"complete", "diverged"}
        late = [t.params["x"] for t in snapshot.trials if t.number > 9]
        assert sum(x > 0.93 for x in late) < len(late) / 2, "the sampler avoids what diverges"


def test_what_is_reported_of_a_study_that_maximizes_mirrors_its_negative(here: Path, stores: dict[str, Store]) -> None:
    keys = {"baseline_seeds": 4, "budget": {"trials": 26}, "pruner": {"name": "none"}}
    goals = {"targets": {"far": 0.1, "near": 1.2}, "milestones": {0.5: 1.3, 1.0: 0.2}}
    one, other = mirrored(here, stores, **keys, **goals)
    a, b = summary(one), summary(other)
    assert "direction" not in a
    assert b["direction"] == "maximize"
    assert a["best"]["number"] == b["best"]["number"]
    assert a["noise"]["sigma"] == b["noise"]["sigma"] > 0
    assert a["noise"]["mean"] == -b["noise"]["mean"]
    assert [(t["trial"], t["rung"], negated(t["value"])) for t in a["targets"].values()] == [
        (t["trial"], t["rung"], t["value"]) for t in b["targets"].values()
    ]
    assert b["targets"]["near"]["trial"] is not None
    assert b["targets"]["far"]["trial"] is None
    assert [(m["met"], m["by"]) for m in a["milestones"].values()] == [
        (m["met"], m["by"]) for m in b["milestones"].values()
    ]
    assert [trial_columns(one, t).get("sigmas") for t in one.trials] == [
        trial_columns(other, t)["sigmas"] for t in other.trials
    ]
    assert " above the baseline)" in best_summary(other)
    assert re.search(r"the best trial is [\d.]+ below it", "\n".join(goal_lines(other)))
    swapped = [line.replace("below", "above") for line in numberless(study_warnings(one))]
    assert [line.replace("below", "above") for line in numberless(study_warnings(other))] == swapped
    texts = [numberless([v.headline, *v.grounds]) for v in (verdict(one), verdict(other))]
    assert [line.replace("below", "SIDE").replace("above", "SIDE") for line in texts[0]] == [
        line.replace("below", "SIDE").replace("above", "SIDE") for line in texts[1]
    ]
    assert " above the mean of 4 runs of the baseline" in verdict(other).headline
    assert [negated(s.best) for s in study_progress(one)] == [s.best for s in study_progress(other)]
    chance = [list(history_figure(s)[0].data[2].y) for s in (one, other)]
    assert chance[0] == [-y for y in chance[1]]
    important = [importances(points_at_rung(s, 8), axes(s)) for s in (one, other)]
    assert important[0] == important[1] != []


def numberless(lines: list[str]) -> list[str]:
    return [re.sub(r"-(?=\d)", "", line) for line in lines]


@pytest.mark.exhaustive
def test_confirm_ablate_and_export_mirror_the_negative(here: Path, stores: dict[str, Store]) -> None:
    base = {"spread": 0.02, "digits": 4, "x": 0.8, "y": 0.8}
    one, other = mirrored(here, stores, pruner={"name": "none"}, budget={"trials": 8}, base=base)
    confirmed, ablated = [], []
    for snapshot, direction in ((one, "minimize"), (other, "maximize")):
        store = stores[direction]
        plan = plan_confirmation(snapshot, "c", ConfirmRequest(None, 2, 4, None, None, "t"), 1000)
        confirmed.append(run_study(store, plan))
        request = AblateRequest(None, "baseline", "best", "add-one-in", [], [], 4, None, None)
        ablated.append(run_study(store, plan_ablation(snapshot, "a", request, 2000)))
    arms = [compare_arms(snapshot) for snapshot in confirmed]
    assert [(a.arm, a.n, a.verdict, a.sd) for a in arms[0]] == [(a.arm, a.n, a.verdict, a.sd) for a in arms[1]]
    assert "better" in {a.verdict for a in arms[1]}
    for a, b in zip(*arms, strict=True):
        assert a.mean == negated(b.mean)
        if a.difference is not None and b.difference is not None:
            ends = (-b.difference.high, -b.difference.low)
            assert (a.difference.mean, a.p) == (-b.difference.mean, b.p)
            assert (a.difference.low, a.difference.high) == pytest.approx(ends)
    assert [r["verdict"] for r in confirmation_table(confirmed[0])] == [
        r["verdict"] for r in confirmation_table(confirmed[1])
    ]
    remaining = [re.findall(r"of which (\d+%) remains", " ".join(confirmation_verdicts(s))) for s in confirmed]
    assert remaining[0] == remaining[1] != []
    effects = [{e.name: e for e in estimate_effects(snapshot)} for snapshot in ablated]
    swapped = {"lowers": "raises", "raises": "lowers"}
    for name, a in effects[0].items():
        b = effects[1][name]
        assert (a.mean, a.p, a.lost) == (negated(b.mean), b.p, b.lost)
        assert swapped.get(a.verdict, a.verdict) == b.verdict
    exported = [trial_to_export(stores[d], s) for d, s in (("minimize", one), ("maximize", other))]
    assert exported[0][0].number == exported[1][0].number
    assert exported[0][1] == exported[1][1] == "confirmed better than the baseline by c"


def test_a_target_that_is_maximized_ends_the_study(here: Path, stores: dict[str, Store]) -> None:
    keys = {"targets": {"good": 1.15}, "budget": {"target": "good"}}
    one, other = mirrored(here, stores, **keys)
    assert one.target == other.target == "good"
    assert len(one.trials) < 30


def test_optuna_knows_the_direction_and_a_stored_study_keeps_it(here: Path, tmp_path: Path) -> None:
    path, url = write(here, "maximize", {"budget": {"trials": 4}}), f"sqlite:///{tmp_path}/hpo.db"
    hpo("launch", "--study", path.name, "--storage", url, "--workers", "1", cwd=here)
    study = optuna.load_study(study_name="planted", storage=url)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert "objective gain, maximized" in hpo("launch", "--study", path.name, "--dry-run", cwd=here).stderr
    best = hpo("best", "--storage", url, "--format", "json", cwd=here).stdout
    assert f'"number": {study.best_trial.number}' in best
    path.write_text(path.read_text().replace("direction: maximize\n", "direction: minimize\n"))
    changed = hpo("launch", "--study", path.name, "--storage", url, cwd=here, status=2)
    assert "must minimize gain, and the storage holds a study of this name with directions maximize" in changed.stderr


@pytest.mark.parametrize(
    ("direction", "keys", "rule"),
    [
        (None, {"objective": "val_acc"}, "direction: required with objective 'val_acc', of which by its name a larger"),
        ("max", {}, "direction: must be one of 'minimize', 'maximize', got 'max'; did you mean 'maximize'?"),
        ("maximize", {"train": None, "config": None}, "direction: must be minimize, because 'val_loss' of the GPT"),
    ],
)
def test_a_direction_that_is_missing_or_impossible_is_refused(
    here: Path, direction: str | None, keys: dict[str, Any], rule: str
) -> None:
    path = write(here, "minimize", {})
    tree = parse_yaml(path.read_text()) | {"direction": direction} | keys
    if "train" in keys:
        tree = {"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}, "direction": direction}
    path.write_text(dump_yaml({key: value for key, value in tree.items() if value is not None}))
    assert f"planted.yaml: {rule}" in hpo("check", path.name, cwd=here, status=2).stderr
    assert f"planted.yaml: {rule}" in hpo("launch", "--study", path.name, cwd=here, status=2).stderr


MAXIMIZED = """accuracy valAcc top1_acc f1 BLEU-4 rougeL win_rate eval/reward top1 val_top5 hit_rate jaccard cosine_sim
ep_rew_mean elbo log_prob quality tokens_per_second rating"""
MINIMIZED = """loss val_loss accuracy_error neg_reward brier_score account recipe mapping x seconds_per_step stopped
mean_squared_error desktop"""


@pytest.mark.parametrize("name", MAXIMIZED.split())
def test_a_metric_that_is_maximized_is_known_by_a_word_of_its_name(name: str) -> None:
    assert is_maximized(name)


@pytest.mark.parametrize("name", MINIMIZED.split())
def test_a_word_inside_another_word_and_a_loss_are_not_maximized(name: str) -> None:
    assert not is_maximized(name)


def test_a_stored_study_with_a_metric_to_maximize_continues_as_it_is(here: Path, tmp_path: Path) -> None:
    url, path = f"sqlite:///{tmp_path}/hpo.db", write(here, "minimize", {"budget": {"trials": 2}})
    text = path.read_text()
    with open_store(url, create=True) as store:
        run_study(store, load_study(str(path)))
        study = optuna.load_study(study_name="planted", storage=store.optuna)
        spec = {key: value for key, value in study.user_attrs[SPEC].items() if key != "direction"}  # of version 0.1
        study.set_user_attr(SPEC, spec | {"objective": "acc"})
    text = text.replace("direction: minimize\n", "").replace("objective: gain", "objective: acc")
    path.write_text(text)
    launched = hpo("launch", "--study", path.name, "--storage", url, "--trials", "3", cwd=here)
    assert "3 trials" in launched.stderr
    hpo("launch", "--study", path.name, "--storage", f"sqlite:///{tmp_path}/new.db", cwd=here, status=2)


@pytest.mark.parametrize("field", ["seed", "run.seed"])
def test_a_seed_is_not_searched_by_a_new_study(here: Path, field: str) -> None:
    path = write(here, "minimize", {"space": {field: {"low": 0, "high": 9}}})
    if field == "run.seed":
        path.write_text(dump_yaml({"space": {field: {"low": 0, "high": 9}}}))
    refused = hpo("launch", "--study", path.name, cwd=here, status=2).stderr
    assert f"planted.yaml: space.{field}: must not be searched" in refused
    assert "baseline_seeds" in refused
    assert "arms with seeds" in refused


SAVING = """

from hpo.runs.generators import GeneratorRuns


class Run(BaseModel):
    keep_checkpoints: str = "best"


class Saved(Signed):
    run: Run = Run()


class Saving(GeneratorRuns):
    def __init__(self, configs, **arguments):
        super().__init__(signed, configs)

    def save(self, lane, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.safetensors").write_text("")
"""


def test_the_checkpoints_of_the_largest_values_are_kept(here: Path, stores: dict[str, Store]) -> None:
    kept = {}
    for direction in SIGNS:
        keys = {"train": "curves:Saving", "config": "curves:Saved", "pruner": {"name": "none"}, "keep_best": 2}
        path = write(here, direction, {**keys, "budget": {"trials": 6}, "base": {"digits": 4}})
        (here / "curves.py").write_text((here / "curves.py").read_text() + SAVING)
        snapshot = run_study(stores[direction], load_study(str(path)))
        trials = next((here / "runs").glob("planted*")) / "trials"
        kept[direction] = {int(file.parts[-3]) for file in trials.glob("*/checkpoint/state.safetensors")}
        best = sorted(snapshot.feasible, key=snapshot.loss)[:2]
        assert kept[direction] == {t.number for t in best}
        shutil.rmtree(here / "runs")
    assert kept["minimize"] == kept["maximize"]

"""Studies of arms: which runs they are, what they refuse, and how arms are compared."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hpo.analysis.looks import runs_by_arm
from hpo.analysis.snapshot import read_snapshot
from hpo.commands.enqueue import enqueue_trial, retry_trials
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.errors import Problem
from hpo.evidence.paired import compare_arms
from hpo.queue.registry import register_study
from hpo.storage.store import Store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from tests.support.comparisons import run_study
from tests.support.planted import edit
from tests.support.planted import planted_study as planted
from tests.support.tiny import tiny

pytestmark = pytest.mark.usefixtures("here")

ARMS = {"plain": {}, "lower": {"x": 0.1}, "nearly": {"x": 0.49}}


def arms(folder: Path, **keys: Any) -> Path:
    """Write a file of arms over planted curves."""
    path = planted(folder, **{"base": {"noise": 0.05}, "arms": ARMS, "seeds": [3, 4, 5, 6], **keys})
    tree = parse_yaml(path.read_text()) | {"arms": keys.get("arms", ARMS)}  # in their order
    for key in {"space", "sampler", "budget"} - keys.keys():
        del tree[key]
    path.write_text(dump_yaml(tree))
    return path


def refused(path: Path) -> list[str]:
    with pytest.raises(Problem) as caught:
        load_study(str(path))
    return [line.removeprefix(f"{path}: ") for line in caught.value.lines]


def test_each_arm_is_run_once_with_each_seed_and_none_is_pruned(here: Path, store: Store) -> None:
    snapshot = run_study(store, load_study(str(arms(here))))
    assert [(t.user_attrs["arm"], t.user_attrs["seed"]) for t in snapshot.trials] == [
        (arm, seed) for seed in (3, 4, 5, 6) for arm in ARMS
    ]
    assert {t.state for t in snapshot.trials} == {State.COMPLETE}
    assert [t.params for t in snapshot.trials[:3]] == [{"x": x, "seed": 3} for x in (0.5, 0.1, 0.49)]
    assert snapshot.budget["trials"] == 12


def test_arms_are_compared_in_pairs_of_one_seed(here: Path, store: Store) -> None:
    snapshot = run_study(store, load_study(str(arms(here))))
    value = {(t.user_attrs["arm"], t.user_attrs["seed"]): t.values[0] for t in snapshot.trials}
    rows = {row.arm: row for row in compare_arms(snapshot)}
    assert list(rows) == list(ARMS)
    p = {}
    for arm in ("lower", "nearly"):
        mine, first = ([value[name, seed] for seed in (3, 4, 5, 6)] for name in (arm, "plain"))
        assert rows[arm].difference is not None
        assert rows[arm].difference.mean == pytest.approx(np.mean(mine) - np.mean(first))
        assert (rows[arm].mean, rows[arm].sd) == pytest.approx((np.mean(mine), np.std(mine, ddof=1)))
        p[arm] = stats.ttest_rel(mine, first).pvalue
    assert rows["lower"].p == pytest.approx(2 * p["lower"]), "the smaller of two, corrected"
    assert rows["nearly"].p == pytest.approx(p["nearly"])
    assert [row.verdict for row in rows.values()] == ["reference", "better", "no difference shown"]


def test_arm_that_diverges_is_worse_and_its_pairs_are_none(here: Path, store: Store) -> None:
    module = "if config.x == 0.1 and config.seed > 3:\n        yield 1, float('nan')\n    for rung in"
    path = arms(here)
    edit(here, "for rung in", module)
    rows = {row.arm: row for row in compare_arms(run_study(store, load_study(str(path))))}
    assert (rows["lower"].n, rows["lower"].lost, rows["lower"].verdict) == (1, 3, "worse: runs lost")
    assert rows["lower"].difference is None
    assert rows["nearly"].n == 4


def test_run_that_is_tried_again_counts_as_its_last_try(here: Path, store: Store) -> None:
    path = arms(here)
    curves = here / "curves.py"
    sound = curves.read_text()
    curves.write_text(
        sound.replace("for rung in", "if config.x == 0.1 and config.seed == 4:\n        1 / 0\n    for rung in", 1)
    )
    snapshot = run_study(store, load_study(str(path)))
    assert [len(trials) for trials in runs_by_arm(snapshot).values()] == [4, 4, 4]
    assert [t.user_attrs["arm"] for t in snapshot.in_state(State.FAIL)] == ["lower"]
    curves.write_text(sound)
    sys.modules.pop("curves")
    retry_trials(store, snapshot.name, None, failed=True)
    stored = register_study(store, load_study(str(path)), None, {})
    assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
    snapshot = read_snapshot(store, snapshot.name)
    assert runs_by_arm(snapshot)["lower"][4].state == State.COMPLETE
    assert [row.n for row in compare_arms(snapshot)] == [4, 4, 4]


MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({"seeds": []}, ["seeds: required with arms, for example [1, 2, 3]; each arm runs with each seed"]),
    ({"seeds": [1, 2, 1]}, ["seeds: must be distinct, got 1 twice; remove one of them"]),
    ({"space": {"x": {"low": 0, "high": 1}}}, ["space: must be omitted with arms, because only the arms run"]),
    ({"sampler": {"name": "random"}}, ["sampler: must be omitted with arms, because only the arms run"]),
    ({"baseline_seeds": 3}, ["baseline_seeds: must be omitted with arms, because only the arms run"]),
    ({"budget": {"trials": 5}}, ["budget.trials: must be omitted with arms, because their 12 runs are the budget"]),
    ({"arms": {"a": {}, "b": {"x": 2.0}}}, ["arms.b.x: must be at most 1, got 2.0"]),
    ({"arms": {"a": {}, "b": {"x": 0.5}}}, ["arms.b: must differ from every other arm, got the configuration of a"]),
    (
        {"arms": {"a": {}, "b": {"seed": 1, "x": 0.1}}},
        ["arms.b.seed: must be omitted, because all arms have the same seeds; use the key seeds"],
    ),
    ({"arms": {"a": {}}}, ["arms: must have at least 2 arms to compare, got 1"]),
]


@pytest.mark.parametrize(("keys", "lines"), MISTAKES, ids=[line[0][:40] for _, line in MISTAKES])
def test_mistake_is_named_by_key_rule_and_value(here: Path, keys: dict[str, Any], lines: list[str]) -> None:
    assert refused(arms(here, **keys)) == lines


def test_config_without_a_seed_is_refused(here: Path) -> None:
    path = arms(here)
    edit(here, "seed: int = 0", "luck: int = 0")
    assert refused(path) == [
        "arms: must be used with a config that has a field run.seed or seed, in which the runs of an arm differ"
    ]


def gpt_arms(path: Path, found: dict[str, Any], **keys: Any) -> Path:
    base = tiny().model_dump(mode="json")
    base["run"].pop("align")
    path.write_text(dump_yaml({"base": base, "arms": found, "seeds": [1, 2], **keys}))
    return path


def test_arms_of_several_batches_are_scored_after_the_same_tokens(here: Path) -> None:
    study = load_study(
        str(gpt_arms(here / "g.yaml", {"a": {}, "b": {"run.grad_accum": 2}, "c": {"run.batch_size": 6}}))
    )
    assert study.file.arms is not None
    configs = [study.configured(values) for values in study.file.arms.values()]
    marks = [[mark * c.update_tokens() for mark in c.marks()] for c in configs]  # type: ignore[attr-defined]
    assert marks[0] == marks[1] == marks[2]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"run.tokens": 2048}, "must train for as many tokens as the first arm"),
        ({"run.rungs": 1}, "run.rungs: must be the same as in the first arm"),
        (
            {"data.name": "python-docs"},
            "data.name: must be the same as in the first arm, because losses on different data",
        ),
        (
            {"tokenizer.name": "chars"},
            "objective: must be val_bpb, because arms.b has a different tokenizer, got val_loss",
        ),
    ],
    ids=["tokens", "rungs", "data", "tokenizer"],
)
def test_arms_whose_losses_cannot_be_compared_are_refused(here: Path, values: dict[str, Any], said: str) -> None:
    assert any(said in line for line in refused(gpt_arms(here / "g.yaml", {"a": {}, "b": values})))


def test_arms_of_a_config_that_counts_tokens_must_be_trained_on_as_many(here: Path) -> None:
    path = arms(here, arms={"a": {}, "b": {"noise": 0.1}})
    counting = "    def rung_tokens(self) -> float:\n        return 1000 + 10 * self.noise\n\n\ndef train"
    edit(here, "\ndef train", counting)
    (line,) = refused(path)
    assert line == (
        "arms.b: must train for as many tokens per rung as the first arm, 1,000.5, because runs with different lengths "
        "cannot be compared; got 1,001.0"
    )


def test_arms_that_no_mark_suits_may_differ_by_less_than_an_update(here: Path) -> None:
    arms = {"a": {"run.batch_size": 3}, "b": {"run.batch_size": 4}}
    path = gpt_arms(here / "g.yaml", arms)
    tree = parse_yaml(path.read_text())
    tree["base"]["run"] |= {"tokens": 1000, "rungs": 4}
    path.write_text(dump_yaml(tree))
    study = load_study(str(path))
    ends = [c.marks()[-1] * c.update_tokens() for c in (study.configured(v) for v in arms.values())]  # type: ignore[attr-defined]
    assert len(set(ends)) in (1, 2)


def test_nothing_is_enqueued_beside_arms(here: Path, store: Store) -> None:
    snapshot = run_study(store, load_study(str(arms(here))))
    with pytest.raises(
        Problem, match="enqueue: must be used with a search; study planted has arms, and runs only those"
    ):
        enqueue_trial(store, snapshot.name, ["x=0.9"])


def test_arms_of_equal_updates_may_differ_in_tokens(here: Path) -> None:
    values = {"run.batch_size": 8, "run.tokens": 2 * tiny().run.tokens}
    path = gpt_arms(here / "g.yaml", {"a": {}, "b": {**values}}, equal="updates")
    assert load_study(str(path)).file.equal == "updates"
    assert "as many tokens" in refused(gpt_arms(here / "g.yaml", {"a": {}, "b": values}))[0]

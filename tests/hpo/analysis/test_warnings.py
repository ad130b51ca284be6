"""The notes beside a result: each is given where it is true and not where it is not, with planted trials."""

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.crowd import plant
from hpo.analysis.effects import without_effect
from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import read_snapshot
from hpo.analysis.summary import best_summary
from hpo.analysis.warnings import MAX_TRIALS, position, study_warnings
from hpo.config.yaml import dump_yaml
from hpo.evidence.paired import scope_note
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.storage.engine import open_readonly
from hpo.storage.store import Store, open_store
from hpo.study.load import load_study
from tests.support.command import hpo
from tests.support.control import run_worker
from tests.support.ended_trials import SPACE, add_trial, end_search, register_search, warnings_of
from tests.support.planted import edit
from tests.support.planted import planted_study as planted
from tests.support.statements import executed_statements
from tests.support.tiny import tiny

pytestmark = pytest.mark.usefixtures("here")

WORSE_THAN_BIGRAMS = (
    "a bigram model reaches {}, which is better. The training runs are too short or the model is too small."
)
BEYOND = " Values beyond it were not tried."


@pytest.fixture
def store(here: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{here}/caveats.db", create=True) as store:
        yield store


# --- rows of the data that are left out


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"read": 1000, "missing": 100, "repeated": 100, "documents": 800}, []),
        (
            {"read": 1000, "missing": 101, "repeated": 0, "documents": 899},
            ["101 of 1,000 rows of the data have no text in the column, and are left out."],
        ),
        (
            {"read": 2000, "missing": 0, "repeated": 1500, "documents": 500},
            ["1,500 of 2,000 rows of the data repeat an earlier one, and are left out."],
        ),
        ({}, []),
    ],
    ids=["a tenth", "missing", "repeated", "prepared by an earlier version"],
)
def test_more_than_a_tenth_of_the_rows_left_out_is_a_note(
    store: Store, here: Path, rows: dict[str, int], expected: list[str]
) -> None:
    stored = register_search(store, here)
    stored.store_rows(rows)
    add_trial(stored, 1.5, "baseline", x=0.5)
    assert [note for note in warnings_of(stored) if "rows" in note] == expected


# --- the edge of a range


@pytest.mark.parametrize(
    ("entry", "value", "at"),
    [
        ({"low": 0.0, "high": 2.0}, 0.5, 0.25),
        ({"low": 1e-4, "high": 1e-2, "log": True}, 1e-3, 0.5),
        ({"low": 0.9, "high": 0.999, "complement_log": True}, 0.99, 0.5),
        ({"low": 0.9, "high": 0.999, "complement_log": True}, 0.999, 1.0),
        ({"low": 1, "high": 5}, 5, 1.0),
        ({"low": 1, "high": 2}, 2, None),
        ({"low": 0.0, "high": 1.0, "step": 0.5}, 0.0, 0.0),
        ({"low": 0.0, "high": 1.0, "step": 1.0}, 0.0, None),
        ({"choices": [1, 2, 4]}, 4, 1.0),
        ({"choices": [0.5, 0.1, 0.0]}, 0.5, 0.0),
        ({"choices": [1, 4, 2]}, 4, None),
        ({"choices": [1, 2]}, 1, None),
        ({"choices": ["a", "b", "c"]}, "a", None),
        ({"choices": [False, True, 2]}, False, None),
    ],
)
def test_a_value_lies_on_its_ranges_own_scale(entry: dict[str, Any], value: Any, at: float | None) -> None:
    assert position(entry, value) == (None if at is None else pytest.approx(at))


@pytest.mark.parametrize(
    ("x", "note"),
    [
        (
            0.985,
            "x of the best trial, 0.9850, is 1.5 % from the upper end of its range, 1.0000. Values",
        ),
        (0.0, "x of the best trial, 0.0000, is the lower end of its range. Values beyond it were not tried."),
        (0.975, None),
        (0.03, None),
    ],
)
def test_a_best_value_within_2_percent_of_an_end_is_on_the_edge(
    store: Store, here: Path, x: float, note: str | None
) -> None:
    stored = register_search(store, here)
    add_trial(stored, 1.5, "baseline", x=0.5)
    for i in range(9):
        add_trial(stored, 1.3 + i / 100, x=0.4)
    add_trial(stored, 1.2, x=x)
    found = warnings_of(stored)
    assert len(found) == (note is not None)
    assert note is None or note.replace("0.0000", "0").replace("1.0000", "1") in found[0]


def test_a_best_value_of_the_first_few_trials_is_no_finding(store: Store, here: Path) -> None:
    stored = register_search(store, here)
    add_trial(stored, 1.5, "baseline", x=0.5)
    add_trial(stored, 1.2, x=1.0)
    assert warnings_of(stored) == []
    end_search(stored)
    assert len(warnings_of(stored)) == 1


# --- the baseline, the bigrams, the noise


def test_a_search_that_never_beat_its_baseline_says_so_and_one_that_did_does_not(store: Store, here: Path) -> None:
    stored = register_search(store, here)
    add_trial(stored, 1.5, "baseline", x=0.0)
    for i in range(10):
        add_trial(stored, 1.6 + i / 100, pruned=i > 3, x=0.4)
    assert warnings_of(stored) == [
        "none of the 10 searched trials is better than the baseline (trial 0, val_loss 1.5000)."
    ]
    add_trial(stored, 1.4, x=0.4)
    assert warnings_of(stored) == []


@pytest.mark.parametrize(("objective", "anchor"), [("val_loss", "bigram"), ("val_bpb", "bigram_bpb")])
def test_a_best_trial_that_loses_to_bigrams_says_so(store: Store, here: Path, objective: str, anchor: str) -> None:
    stored = register_search(store, here, {anchor: 1.45, "unigram": 9.0}, objective=objective)
    add_trial(stored, 1.5, "baseline", x=0.5)
    assert warnings_of(stored) == [
        "a bigram model reaches 1.4500, which is better. The training runs are too short or the model is too small."
    ]
    add_trial(stored, 1.44, x=0.5)
    assert warnings_of(stored) == []


def test_the_best_trial_stands_beside_the_anchors_that_the_study_stores(store: Store, here: Path) -> None:
    anchors = {"unigram": 5.25, "bigram": 3.5, "trigram": 2.5, "unigram_bpb": 7.0}
    stored = register_search(store, here, anchors, objective="val_loss")
    add_trial(stored, 3.1, "baseline", x=0.5)
    line = best_summary(read_snapshot(store, "planted"))
    assert line.endswith("(baseline 3.1000, trigram 2.5000, bigram 3.5000, unigram 5.2500)")
    stored.optuna.set_user_attr("hpo:anchors", {"unigram": 5.25, "bigram": 3.5})  # of an earlier version
    assert best_summary(read_snapshot(store, "planted")).endswith("(baseline 3.1000, bigram 3.5000, unigram 5.2500)")


def noisy(stored: StoredStudy, best: float) -> list[str]:
    """Return the notes of a search of 20 trials over a baseline of mean 2 and sigma 0.125."""
    for i, value in enumerate((1.9, 2.1, 1.9, 2.1)):
        add_trial(stored, value, "seed" if i else "baseline", x=0.5)
    for _ in range(19):
        add_trial(stored, 2.5, pruned=True, x=0.5)
    add_trial(stored, best, x=0.5)
    return warnings_of(stored)


def test_a_best_trial_that_luck_would_have_reached_is_inside_the_noise(store: Store, here: Path) -> None:
    found = noisy(register_search(store, here, baseline_seeds=4), 1.80)
    assert len(found) == 1
    assert found[0].startswith(
        "the best trial, with val_loss 1.80, is within the noise: the best of 20 runs of the baseline is expected to "
        "reach 1.77 by chance (sigma 0.13 from 4 seeds)"
    )


def test_a_best_trial_below_what_luck_reaches_is_no_noise(store: Store, here: Path) -> None:
    assert noisy(register_search(store, here, baseline_seeds=4), 1.70) == []


def test_luck_is_distinguished_from_gain_in_planted_studies() -> None:
    from hpo.analysis.noise import expected_minimum

    draw = random.Random(5)
    lucky = [min(draw.gauss(2.0, 0.1) for _ in range(20)) >= expected_minimum(20, 2.0, 0.1) for _ in range(2000)]
    gained = [min(draw.gauss(1.7, 0.1) for _ in range(20)) >= expected_minimum(20, 2.0, 0.1) for _ in range(2000)]
    assert 0.4 < sum(lucky) / 2000 < 0.65  # it is the mean of what luck reaches, not its limit
    assert sum(gained) == 0


# --- fields without effect


def test_two_trials_that_differ_in_one_knob_alone_with_equal_curves_show_that_it_is_dead(
    store: Store, here: Path
) -> None:
    grid = {"x": {"choices": [0.1, 0.6]}, "pause": {"choices": [0.0, 0.001, 0.002]}}
    stored = register_search(
        store, here, space=grid, sampler={"name": "grid"}, budget={"trials": 7}, pruner={"name": "none"}
    )
    assert run_worker(stored) == 0
    assert without_effect(read_snapshot(store, "planted")) == {"pause": (1, 2)}
    assert warnings_of(stored) == ["pause has no effect: trials 1 and 2 differ only in it, and their curves are equal."]


def test_one_pair_with_other_curves_acquits_a_knob(store: Store, here: Path) -> None:
    stored = register_search(store, here)
    for value, x, pause in ((1.5, 0.2, 1.0), (1.5, 0.2, 2.0), (1.6, 0.3, 1.0), (1.7, 0.3, 2.0)):
        add_trial(stored, value, x=x, pause=pause)
    end_search(stored)
    assert warnings_of(stored) == []


@pytest.mark.parametrize(("bounds", "said"), [("ge=-9.0, le=9.0", True), ("ge=0.0", False), ("gt=-1e-12", False)])
def test_an_end_beyond_which_the_field_has_no_values_is_no_edge(
    store: Store, here: Path, bounds: str, said: bool
) -> None:
    path = planted(here, space=SPACE, budget={"trials": 40})
    edit(here, "ge=0.0, le=1.0", bounds)
    stored = register_study(store, load_study(str(path)), None, {})
    add_trial(stored, 1.5, "baseline", x=0.5)
    for i in range(10):
        add_trial(stored, 1.4 - i / 100, x=(9 - i) / 9)
    assert bool(warnings_of(stored)) == said


def test_a_study_that_ran_says_of_which_field_no_effect_shows_and_not_that_it_lies_on_an_edge(
    store: Store, here: Path
) -> None:
    stored = register_search(store, here)
    draw = random.Random(3)
    for i in range(30):
        x, pause = draw.random(), 0.0 if i == 7 else 10 * draw.random()
        add_trial(stored, 1.0 if i == 7 else 1.1 + x, x=0.2 if i == 7 else x, pause=pause)
    assert warnings_of(stored) == [
        "pause of the best trial, 0, is the lower end of its range. Values beyond it were not tried."
    ]
    end_search(stored)
    (note,) = warnings_of(stored)
    assert note.startswith("pause has no measurable effect in these 30 trials (p = 0.")
    assert note.endswith(").")


# --- arms, and what it costs


def test_arms_with_the_same_curves_on_every_seed_are_named(store: Store, here: Path) -> None:
    planted(here)
    tree = {"train": "curves:train", "config": "curves:Config", "rungs": 4, "seeds": [1, 2]}
    arms = {"a": {"noise": 0.1}, "b": {"noise": 0.1, "pause": 0.001}, "c": {"noise": 0.1, "x": 0.1}}
    (here / "arms.yaml").write_text(dump_yaml({**tree, "arms": arms}))
    stored = register_study(store, load_study("arms.yaml"), None, {"bigram": 0.5})
    assert warnings_of(stored) == []
    assert run_worker(stored) == 0
    assert warnings_of(stored) == [
        WORSE_THAN_BIGRAMS.format("0.5000"),
        "arms a and b have equal curves: the fields in which they differ have no effect.",
    ]


def test_a_study_without_a_result_has_no_notes(store: Store, here: Path) -> None:
    stored = register_search(store, here)
    assert warnings_of(stored) == []
    add_trial(stored, None, x=0.5)
    end_search(stored)
    assert warnings_of(stored) == []


def test_of_a_long_study_only_the_best_trial_is_read(here: Path) -> None:
    url = f"sqlite:///{here}/long.db"
    with open_store(url, create=True) as long:
        end_search(plant(long, MAX_TRIALS + 10, 0))
    with open_readonly(url) as reader:
        snapshot = read_snapshot(reader, "crowd")
        assert has_ended(snapshot)
        with executed_statements(reader.engine) as statements:
            study_warnings(snapshot)
        assert len(statements) <= 1
        assert all("trial_id IN (?)" in s for s in statements), "one placeholder: of one trial"


LOOK = """
import sys
from hpo.cli.main import main
sys.argv = ["hpo", "status", "--storage", sys.argv[1]]
try:
    main()
except SystemExit:
    pass
print(sorted({"scipy", "optuna", "torch", "model"} & sys.modules.keys()))
"""


def test_status_ends_with_the_notes_and_loads_scipy_only_for_a_test(store: Store, here: Path) -> None:
    stored = register_search(store, here)
    add_trial(stored, 1.5, "baseline", x=0.5)
    for i in range(10):
        add_trial(stored, 1.4 - i / 100, x=i / 9)
    asked = [sys.executable, "-c", LOOK, f"sqlite:///{here}/caveats.db"]
    *_, note, loaded = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    assert note == "note: x of the best trial, 1, is the upper end of its range. Values beyond it were not tried."
    assert loaded == "[]"


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (
            {"val_tokens": 54, "val_documents": 2},
            "only 54 tokens in 2 documents. A loss on so little text has a standard",
        ),
        ({"val_tokens": 4999, "val_documents": 1}, "only 4,999 tokens in 1 document. "),
        ({"val_tokens": 5000, "val_documents": 1}, ""),
        ({}, ""),
    ],
)
def test_a_small_validation_split_is_noted_with_its_tokens_and_documents(
    store: Store, here: Path, size: dict[str, int], said: str
) -> None:
    stored = register_search(store, here)
    add_trial(stored, 1.5, x=0.2, pause=0.1)
    snapshot = replace(read_snapshot(store, "planted"), rows=size)
    notes = [note for note in study_warnings(snapshot) if "validation split" in note]
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)
    scope = scope_note(snapshot)
    assert scope.startswith("p-values and intervals cover the seeds of the runs, not the choice of the validation data")
    assert ("tokens in" in scope) == bool(size)


def test_the_size_of_the_split_is_stored_by_a_launch(here: Path) -> None:
    base = tiny().model_dump(mode="json")
    space = {"optimizer.lr": {"choices": [1e-3]}}
    (here / "s.yaml").write_text(dump_yaml({"base": base, "space": space, "budget": {"trials": 1}}))
    launched = hpo("launch", "--study", "s.yaml", cwd=here)
    assert "note: the validation split has only " in launched.stdout
    assert "note: the validation split has only " in hpo("status", cwd=here).stdout

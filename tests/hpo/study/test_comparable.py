"""One answer to the question whether the losses of two runs can be compared."""

from dataclasses import replace
from typing import Any

import pytest

from hpo.search.ranges import Range
from hpo.study.comparable import different_measures, incomparable_fields, incomparable_reason, training_lengths
from hpo.study.spec import Study, StudyFile
from model.config import TrainConfig
from model.data.corpus_base import TRAINING_FIELDS
from model.section import updated

BASE = TrainConfig()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("data.name", "data"),
        ("data.val_fraction", "data"),
        ("data.max_documents", "data"),
        ("tokenizer.name", "tokenizers"),
        ("tokenizer.vocab_size", "tokenizers"),
        ("run.tokens", "lengths"),
        ("run.rungs", "rungs"),
        ("run.align", "rungs"),
        ("run.batch_size", ""),
        ("run.seed", ""),
        ("optimizer.lr", ""),
        ("model.context", ""),
        *((f"data.{field}", "") for field in sorted(TRAINING_FIELDS)),
    ],
)
@pytest.mark.parametrize("objective", ["val_loss", "ema_val_loss", "val_bpb", "ema_val_bpb"])
def test_a_field_may_differ_unless_it_changes_what_is_measured(path: str, reason: str, objective: str) -> None:
    in_bits = objective.endswith("val_bpb")
    assert incomparable_reason(path, objective) == ("" if in_bits and reason == "tokenizers" else reason)


def test_fields_of_another_tokenizer_or_corpus_are_named() -> None:
    other = updated(BASE, {"tokenizer.name": "chars", "data.split_seed": 3, "optimizer.lr": 0.5})
    reasons = incomparable_fields(BASE, other, "val_loss")
    assert {"tokenizer.name": "tokenizers", "data.split_seed": "data"}.items() <= reasons.items()
    assert set(reasons.values()) == {"tokenizers", "data"}
    assert incomparable_fields(BASE, other, "val_bpb") == {"data.split_seed": "data"}
    assert incomparable_fields(BASE, BASE, "val_loss") == {}


@pytest.mark.parametrize("align", [1, 4096])
def test_lengths_differ_by_one_update_at_most_and_by_none_with_aligned_rungs(align: int) -> None:
    sizes = {"run.tokens": 65536, "run.rungs": 4, "model.context": 64, "run.align": align, "run.grad_accum": 1}
    one, two, three = (updated(BASE, sizes | {"run.batch_size": n}) for n in (16, 32, 3))
    assert training_lengths(one, two, "tokens") is None
    assert training_lengths(one, two, "updates") == (64, 32)
    assert (training_lengths(one, three, "tokens") is None) == (align == 1)
    assert training_lengths(one, three, "seconds") is None
    longer = updated(one, {"run.tokens": 131072})
    assert training_lengths(one, longer, "tokens") == (65536, 131072)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("objective", {"objective": "val_bpb"}),
        ("train", {"train": "mine:train"}),
        ("config", {"config": "mine:Config"}),
    ],
)
def test_studies_that_measure_differently_are_distinguished_by_the_key(key: str, changes: dict[str, Any]) -> None:
    file = StudyFile(space={"optimizer.lr": Range(low=1e-3, high=1e-2)})
    study = Study("a", "a.yaml", file, BASE)
    assert different_measures(study, replace(study, name="b", file=file.model_copy(update={"seed": 7}))) == {}
    other = replace(study, file=file.model_copy(update=changes))
    assert set(different_measures(study, other)) == {key}


def test_studies_with_other_rungs_or_lengths_are_distinguished() -> None:
    study = Study("a", "a.yaml", StudyFile(space={"optimizer.lr": Range(low=1e-3, high=1e-2)}), BASE)
    longer = replace(study, base=updated(BASE, {"run.tokens": 2 * BASE.run.tokens}))
    assert different_measures(study, longer) == {"tokens of a rung": (study.rung_tokens, longer.rung_tokens)}

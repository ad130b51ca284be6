"""Every field of a run has an effect."""

import math
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pytest

from model.config import TrainConfig
from model.data.corpus import Text
from model.data.corpus_base import CorpusBase
from model.section import flat, updated
from tests.support.field_changes import IMMUNE, cases, hyperparameters
from tests.support.tiny import tiny


def unreachable(hyperparameter: str) -> bool:
    """Return whether a hyperparameter belongs to a corpus that is not on every machine; `text` has the same fields."""
    key, _, field = hyperparameter.partition(".")
    return key.startswith("data[") and (field == "name" or field in CorpusBase.model_fields)


def rungs(config: TrainConfig) -> Iterator[list[float]]:
    """Train and yield what is seen at each rung."""
    from model.train.trainer import Trainer

    for _, metrics in Trainer([config]):
        m = metrics[0]
        yield [m.tokens, m.updates, m.val_loss, m.train_loss, m.val_bpb, m.ema_val_loss or 0.0]


@cache  # many fields are changed from the same configuration
def whole_run(config: TrainConfig) -> list[list[float]]:
    return list(rungs(config))


def differ(a: list[float] | None, b: list[float] | None) -> bool:
    """Return whether one rung is missing or a value differs.

    The tolerance is far above rounding: dropout once changed the last bits, by its way of computing attention, and
    dropped nothing.
    """
    return a is None or b is None or not all(math.isclose(x, y, abs_tol=1e-5) for x, y in zip(a, b, strict=True))


def test_every_hyperparameter_is_a_case_or_has_a_reason_not_to_be():
    missing = [k for k in hyperparameters() if k not in cases() and k not in IMMUNE and not unreachable(k)]
    assert missing == [], "a new field needs a case in cases(), or a reason in IMMUNE"
    assert [k for k in [*cases(), *IMMUNE] if k not in hyperparameters()] == []


@pytest.mark.parametrize("hyperparameter", [k for k in hyperparameters() if k not in IMMUNE])
def test_changing_a_hyperparameter_changes_the_run(hyperparameter, tmp_path, monkeypatch):
    if hyperparameter not in cases():
        assert unreachable(hyperparameter)
        assert set(CorpusBase.model_fields) <= set(Text.model_fields)
        return
    settings, other = cases()[hyperparameter]
    before = tiny(settings)
    path = hyperparameter.partition("[")[0].partition(".")[0] + "." + hyperparameter.rpartition(".")[2]
    if path == "data.path" and not Path(other).is_dir():  # the same name in another folder, with another text
        (tmp_path / other).write_text(Path(before.data.path).read_text("utf-8").replace("e", "a").replace("o", "u"))
        monkeypatch.chdir(tmp_path)
    after = updated(before, {path: other})
    assert flat(after)[path] != flat(before)[path]
    assert any(differ(a, b) for a, b in zip_longest(rungs(after), whole_run(before)))  # up to the first difference


def test_keeping_checkpoints_and_naming_the_device_change_no_bit():
    plain = tiny()
    for values in ({"run.keep_checkpoints": "all"}, {"run.device": "cpu"}, {"run.compile": "off"}):
        assert whole_run(updated(plain, values)) == whole_run(plain)

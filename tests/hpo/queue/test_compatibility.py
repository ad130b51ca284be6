"""A study whose definition changed is refused with the fields that the user changed."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from hpo.errors import Problem
from hpo.queue.compatibility import check_same
from hpo.study.load import load_study
from model.section import updated
from tests.support.tiny import corpus

GPT = """base:
  data: {{name: text, path: {path}}}
  tokenizer: {{name: bytes}}
  model: {{n_layer: 1, n_head: 2, n_embd: 16, context: 16}}
  run: {{tokens: 8192, rungs: 2, batch_size: 4, grad_accum: 1, device: cpu}}
space: {{optimizer.lr: {{low: 1e-3, high: 1e-2}}}}
"""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([("batch_size: 4", "batch_size: 6")], ["base.run.batch_size"]),
        ([("context: 16", "context: 24")], ["base.model.context"]),
        ([("space: {", "space: {run.batch_size: {choices: [4, 6]}, ")], ["space.run.batch_size.choices"]),
    ],
)
def test_changed_batch_size_is_named_and_not_what_follows_from_it(
    changes: list[tuple[str, str]], named: list[str], here: Path
) -> None:
    text = GPT.format(path=corpus())
    (here / "a.yaml").write_text(text)
    stored = load_study("a.yaml")
    for old, new in changes:
        text = text.replace(old, new)
    (here / "a.yaml").write_text(text)
    changed = load_study("a.yaml")
    with pytest.raises(Problem) as refused:
        check_same(changed, stored.spec(), changed.spec())
    *lines, remedy = refused.value.lines
    assert [line.split(": ")[1] for line in lines] == named
    assert "hpo fork a.yaml --from a --as a-2" in remedy


def test_option_that_makes_an_exported_batch_too_large_is_named(here: Path) -> None:
    (here / "a.yaml").write_text(GPT.format(path=corpus()))
    exported = updated(load_study("a.yaml").base, {"run.align": 3000})
    with pytest.raises(
        ValidationError, match=r"run.batch_size x run.grad_accum x model.context must be at most the 3000"
    ):
        updated(exported, {"run.batch_size": 200})

"""Dotted paths of nested mappings, and the suggestion for a misspelled word."""

import pytest

from model.section import close_match, flatten


@pytest.mark.parametrize(
    ("word", "match"), [("warmup", "warmup_rungs"), ("lrr", "lr"), ("beta2x", "beta2"), ("zzz", None), ("", None)]
)
def test_close_match_is_the_most_similar_word_or_none(word: str, match: str | None) -> None:
    assert close_match(word, ["beta1", "lr", "beta2", "warmups", "warmup_rungs"][::-1]) == match


def test_flatten_returns_the_leaves_of_a_mapping_by_dotted_path() -> None:
    tree = {"a": {"b": 1, "c": {"d": [2]}}, "e": {}, "f": None}
    assert flatten(tree) == {"a.b": 1, "a.c.d": [2], "e": {}, "f": None}

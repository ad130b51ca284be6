"""The shipped ledger of claims, and small ledgers for tests."""

from functools import cache
from typing import Any

from hpo.config.discovery import shipped_folder
from hpo.evidence.claims.ledger import load_ledger
from hpo.evidence.claims.schema import Ledger

BASE: dict[str, Any] = {
    "tokenizer": {"name": "bytes"},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16},
    "run": {"tokens": 2048, "rungs": 4, "batch_size": 4},
}
ARMS: dict[str, Any] = {
    "base": "mine",
    "equal": "tokens",
    "metric": "val_loss",
    "arms": {"a": {}, "b": {"optimizer.lr": 1e-2}},
}


@cache
def shipped() -> Ledger:
    """Return the shipped ledger, whose validation takes two seconds."""
    return load_ledger(shipped_folder() / "claims.yaml")


def claim(test: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    own = {"claim": "b is better", "report": "S009", "effect": {"text": "much"}, "known": {"how": ["expected"]}}
    return own | {"test": ARMS | (test or {})} | changed


def without(test: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in test.items() if k != key}


def verdicts_of(written: str) -> list[str]:
    """Return the lines of a page that have a verdict."""
    return [line for line in written.partition("## All arms")[0].splitlines() if line.startswith("| C")]

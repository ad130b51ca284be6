"""hpo data: the prepared texts of this machine."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hpo.config.overrides import overridden
from hpo.console import say
from hpo.errors import Problem
from hpo.runs.datasets import prepare_data
from hpo.study.load import load_study
from model.config import TrainConfig
from model.data.ngrams import anchors
from model.data.prepare import list_prepared


def configured(study: str | None, overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration whose text is meant.

    Raises:
        Problem: it is none, or the study has no text of ours.
    """
    if study is None:
        return overridden(TrainConfig(), overrides)
    base = load_study(study, overrides).base
    if not isinstance(base, TrainConfig):
        raise Problem(f"--study: {study} has a configuration of its own, whose data is its own too")
    return base


def prepare(study: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Prepare a text and return what is known of it."""
    config = configured(study, overrides)
    found = prepare_data(config)
    splits = {
        name: {"documents": split.documents, "tokens": split.n_targets, "bytes": split.text_bytes}
        for name, split in found.splits.items()
    }
    if synthetic := found.splits["train"].synthetic:
        splits["train"]["synthetic"] = synthetic
    return {
        "data": config.data.name,
        "tokenizer": config.tokenizer.name,
        "vocab_size": found.vocab_size,
        "hash": found.hash[:12],
        **splits,
        "anchors": anchors(found),
        "folder": str(found.folder),
    }


def listed() -> list[dict[str, Any]]:
    """Return one record a prepared text."""
    return [
        {
            "data": meta["name"],
            "tokenizer": meta["tokenizer"]["name"],
            "vocab_size": meta["vocab_size"],
            "hash": meta["hash"][:12],
            "documents": sum(split["documents"] for split in meta["splits"].values()),
            "tokens": sum(split["tokens"] for split in meta["splits"].values()),
            "folder": meta["folder"],
        }
        for meta in list_prepared()
    ]


def documents(study: str | None, overrides: Sequence[str], count: int) -> list[str]:
    """Return the first documents of the training split, as their tokens read."""
    config = configured(study, overrides)
    found = prepare_data(config)
    split, vocabulary = found.splits["train"], found.tokenizer()
    if split.synthetic:
        made_up = f"{split.synthetic} of {split.documents} documents"
        say(f"the last {made_up} are synthetic, drawn from a {config.data.ngram()}-gram model of the others")
    bounds = split.starts[: count + 1].tolist()
    return [vocabulary.decode(np.asarray(split.tokens[a:b], np.int64)) for a, b in pairwise(bounds)]

"""`hpo data`: the prepared datasets of this machine."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hpo.config.overrides import apply_overrides
from hpo.console import say
from hpo.errors import Problem
from hpo.runs.datasets import data_note, prepare_data
from hpo.study.load import load_study
from model.config import TrainConfig
from model.data.ngrams import anchors
from model.data.prepared import list_prepared


def dataset_config(study: str | None, overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration that names a dataset: the base of a study, or the defaults, with overrides.

    Raises:
        Problem: the configuration is not valid, or the study has its own type of configuration.
    """
    if study is None:
        return apply_overrides(TrainConfig(), overrides)
    base = load_study(study, overrides).base
    if not isinstance(base, TrainConfig):
        raise Problem(f"--study: must be a study of hpo's own trainer; {study} has its own configuration and data")
    return base


def prepare_dataset(study: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Prepare a dataset and return a record of its splits, vocabulary and baselines."""
    config = dataset_config(study, overrides)
    data = prepare_data(config)
    if note := data_note(config):
        say(note)
    splits = {
        name: {"documents": split.n_documents, "tokens": split.n_targets, "bytes": split.text_bytes}
        for name, split in data.splits.items()
    }
    if synthetic := data.splits["train"].n_synthetic:
        splits["train"]["synthetic"] = synthetic
    return {
        "data": config.data.name,
        "tokenizer": config.tokenizer.name,
        "vocab_size": data.vocab_size,
        "hash": data.hash[:12],
        **({"rows": data.rows} if data.rows else {}),
        **splits,
        "anchors": anchors(data),
        "folder": str(data.folder),
    }


def dataset_records() -> list[dict[str, Any]]:
    """Return one record per prepared dataset."""
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


def training_documents(study: str | None, overrides: Sequence[str], count: int) -> list[str]:
    """Return the first documents of the training split, decoded from their tokens."""
    config = dataset_config(study, overrides)
    data = prepare_data(config)
    split, vocabulary = data.splits["train"], data.vocabulary()
    if split.n_synthetic:
        n_synthetic = f"{split.n_synthetic} of {split.n_documents} documents"
        say(
            f"the last {n_synthetic} are synthetic: sampled from a {config.data.synthetic_n()}-gram model of the others"
        )
    bounds = split.starts[: count + 1].tolist()
    return [vocabulary.decode(np.asarray(split.tokens[a:b], np.int64)) for a, b in pairwise(bounds)]

"""For every field of a run: a configuration, and a value of the field that changes the run."""

import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from model.config import TrainConfig
from tests.support.tiny import UPDATE, corpus, shared, text


def members(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections of a field: one, or the members of a union."""
    return [kind for kind in (get_args(annotation) or (annotation,)) if isinstance(kind, type)]


SECTIONS = {key: members(field.annotation) for key, field in TrainConfig.model_fields.items()}


def hyperparameters() -> list[str]:
    """Return "section.field", or "section[member].field" where the section is a union, for every field there is."""
    return [
        f"{key}[{kind.model_fields['name'].default}].{name}" if len(kinds) > 1 else f"{key}.{name}"
        for key, kinds in SECTIONS.items()
        for kind in kinds
        for name in kind.model_fields
    ]


# Fields that change nothing, or that something else tests.
IMMUNE = {
    "model[moe].bias": "refused: experts have none",
    "model[gpt].parametrization": "changes with base_width only: tests/model/nn/test_parametrization.py",
    "model[moe].parametrization": "refused: there are no rules for experts",
    "model[moe].base_width": "refused: there are no rules for experts",
    "model[moe].base_depth": "refused: there are no rules for experts",
    "run.device": "where, not what",
    "data[hub].revision": "which state of a data set: test_revision_subset_and_split_reach_the_library",
    "run.compile": "how fast, not what: test_compiled_training_equals_eager",
    "run.keep_checkpoints": "read by who saves, not by the trainer",
    "run.graph_numbers": "adds numbers that are 0: test_runs_with_and_without_dropout_share_one_graph",
    "run.attention": "how, not what: test_attention_written_out_equals_fused",
    "run.test": "looks at the end, and changes nothing before: test_the_test_split_is_scored_once_at_the_end",
    "run.diagnostics": "looks, and changes nothing: test_diagnostics_change_no_bit",
}


def lines() -> list[str]:
    return Path(corpus()).read_text("utf-8").split("\n")


def table() -> str:
    """Write the tiny text as a table of two columns that hold its lines in different order."""
    rows = zip(lines(), lines()[::-1], strict=True)
    return shared("table.jsonl", lambda: "\n".join(json.dumps({"a": a, "b": b}) for a, b in rows))


def links() -> str:
    """Write the tiny text with a link behind each line."""
    linked = (f"{line} https://{line[:2]}.net/{i % 7}" for i, line in enumerate(lines()))
    return shared("links.txt", lambda: "\n".join(linked))


def hub(seed: int) -> str:
    """Write a data set of two subsets, the first with two splits, all of two columns, in the form of the hub."""
    folder = Path(corpus()).with_name(f"hub-{seed}")
    if not folder.exists():
        part = folder.with_suffix(f".{os.getpid()}")
        part.mkdir()
        for i, name in enumerate(("en-train", "en-test", "fr-train")):
            a, b = (text(10 * seed + i + n, lines=400).split("\n") for n in (0, 5))
            rows = ({"a": one, "b": other} for one, other in zip(a, b, strict=True))
            (part / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files = {"en": ("train", "test"), "fr": ("train",)}
        configs = [
            {"config_name": c, "data_files": [{"split": s, "path": f"{c}-{s}.jsonl"} for s in splits]}
            for c, splits in files.items()
        ]
        configs[0]["default"] = True
        (part / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
        with suppress(OSError):  # another process was first
            part.rename(folder)
    return str(folder)


@cache
def cases() -> dict[str, tuple[dict[str, Any], Any]]:
    """Return for each hyperparameter the other settings under which it is in force, and another value for it."""
    found: dict[str, tuple[dict[str, Any], Any]] = {
        "tokenizer[bytes].name": ({}, "chars"),
        "tokenizer[chars].name": ({"tokenizer.name": "chars"}, "bpe"),
        "tokenizer[chars].unknown": ({"tokenizer.name": "chars"}, False),
        "tokenizer[bpe].split_urls": ({"tokenizer.name": "bpe", "data.name": "lines", "data.path": links()}, True),
        "tokenizer[bpe].name": ({"tokenizer.name": "bpe"}, "bytes"),
        "tokenizer[bpe].vocab_size": ({"tokenizer.name": "bpe"}, 300),
        "regularization.dropout": ({}, 0.2),
        "run.tokens": ({}, 12 * UPDATE),
        "run.rungs": ({}, 4),
        "run.align": ({}, 3 * UPDATE),
        "run.batch_size": ({}, 2),
        "run.grad_accum": ({}, 2),
        "run.seed": ({}, 1),
        "run.precision": ({"optimizer.lr": 0.1}, "bf16"),
        "run.spike_every": ({"run.spike_every": 5, "run.spike_scale": 50.0, "optimizer.name": "sgd"}, 7),
        "run.spike_scale": ({"run.spike_every": 5, "run.spike_scale": 50.0, "optimizer.name": "sgd"}, 0.1),
        "regularization.ema": ({}, 0.5),
        "regularization.ema_half_life": ({"regularization.ema_half_life": 1e4}, 100.0),
        "regularization.head_dropout": ({"optimizer.lr": 0.1}, 0.5),
        "regularization.mask_tokens": ({"optimizer.lr": 0.1}, 0.5),
        "regularization.embedding_noise": ({"optimizer.lr": 0.1}, 0.5),
    }
    for site in ("embedding", "attention", "residual", "mlp"):
        found[f"regularization.{site}_dropout"] = ({"optimizer.lr": 0.1}, 0.5)
    return found | model_cases() | data_cases() | optimizer_cases() | schedule_cases() | clip_cases() | recovery_cases()


def data_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    lines = {"data.name": "lines", "data.path": corpus()}
    columns = {"data.name": "table", "data.path": table(), "data.column": "a"}
    split = {"layout": "documents", "val_fraction": 0.2, "test_fraction": 0.2, "split_seed": 1, "max_documents": 20}
    split |= {"drop_documents": 0.3, "shuffle_documents": True, "curriculum": "short", "synthetic": 1.0}
    found: dict[str, tuple[dict[str, Any], Any]] = {"data[table].column": (columns, "b")}
    for name, base in (("text", {}), ("lines", lines), ("table", columns)):
        found[f"data[{name}].name"] = (base, "text" if name == "lines" else "lines")
        found[f"data[{name}].path"] = (base, Path(base.get("data.path", corpus())).name)
        for field, other in split.items():
            found[f"data[{name}].{field}"] = (base, other)
        found[f"data[{name}].synthetic_order"] = (base | {"data.synthetic": 1.0}, 2)
    remote = {"data.name": "hub", "data.path": hub(0), "data.revision": "1", "data.column": "a"}
    other_rows = {"path": hub(1), "subset": "fr", "split": "test", "column": "b", "first": 200, "cut": 20}
    for field, other in other_rows.items():
        found[f"data[hub].{field}"] = (remote, other)
    return found


def model_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    changes = {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 24,
        "context": 8,
        "norm": "rmsnorm",
        "norm_eps": 0.1,
        "norm_gain": "none",
        "embedding_norm": True,
        "final_norm": False,
        "position": "rope",
        "mlp": "swiglu",
        "mlp_ratio": 2.0,
        "bias": True,
        "tied": False,
        "scale_embedding": True,
        "embedding_projection": True,
        "skips": "convex",
        "document_mask": True,
        "init": "glorot",
        "init_std": 0.1,
        "position_std": 0.3,
        "n_expert": 8,
        "top_k": 1,
        "router_noise": 3.0,
        "balance": 3.0,
    }
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for name, base in {"gpt": {}, "moe": {"model.name": "moe", "model.n_expert": 4}}.items():
        found[f"model[{name}].name"] = (base, "moe" if name == "gpt" else "gpt")
        for field, other in changes.items():
            more = {"model.n_layer": 2} if field == "skips" else {"optimizer.lr": 0.1}
            found[f"model[{name}].{field}"] = (base | more, other)
    bases = {"model.parametrization": "completep", "model.base_width": 8, "model.base_depth": 1, "optimizer.lr": 0.1}
    found["model[gpt].base_width"] = (bases | {"model.n_head": 4}, 4)
    found["model[gpt].base_depth"] = (bases, 3)
    return {
        hyperparameter: case
        for hyperparameter, case in found.items()
        if hyperparameter in hyperparameters() and hyperparameter not in IMMUNE
    }


def optimizer_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    changes = {
        "lr": 3e-3,
        "embedding_lr": 3e-2,
        "head_lr": 3e-2,
        "scalar_lr": 3e-2,
        "adam_lr": 3e-2,
        "layer_decay": 0.5,
        "scale_lr": "sqrt",
        "scale_lr_tokens": 128,
        "beta1": 0.5,
        "beta2": 0.5,
        "beta1_half_life": 100.0,
        "beta2_half_life": 100.0,
        "momentum_half_life": 100.0,
        "decay_horizon": 200.0,
        "alpha": 0.5,
        "eps": 1e-2,
        "weight_decay": 3.0,
        "embedding_decay": 3.0,
        "head_decay": 3.0,
        "scalar_decay": 3.0,
        "momentum": 0.5,
        "nesterov": True,
        "ns_steps": 2,
    }
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for kind in SECTIONS["optimizer"]:
        name = kind.model_fields["name"].default
        base = {"optimizer.name": name, "model.bias": True, "model.tied": False, "schedule.warmup": 0.0}
        for field in kind.model_fields:
            settings = base | {"optimizer.lr": 0.03} if field.endswith("_decay") else base
            if field.startswith("scale_lr"):
                settings = base | {"optimizer.scale_lr": "linear", "optimizer.scale_lr_tokens": 16}
            found[f"optimizer[{name}].{field}"] = (settings, changes.get(field))
        found[f"optimizer[{name}].name"] = (base, "adam" if name == "adamw" else "adamw")
    found["optimizer[muon].nesterov"] = (found["optimizer[muon].lr"][0], False)
    return found


def schedule_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    changes = {"warmup": 0.5, "floor": 0.9, "decay": 1.0, "start": 0.9, "beta1_dip": 0.5}
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for kind in SECTIONS["schedule"]:
        name = kind.model_fields["name"].default
        base = {"schedule.name": name}
        for field in kind.model_fields:
            found[f"schedule[{name}].{field}"] = (base, changes.get(field))
        found[f"schedule[{name}].name"] = (base, "cosine" if name != "cosine" else "wsd")
    return found


def clip_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    """Return the hyperparameters of the clipping rules, with settings that clip many of the 24 updates."""
    settings: dict[str, dict[str, Any]] = {
        "norm": {"max_norm": 0.1},
        "none": {},
        "value": {"max_value": 0.01},
        "zclip": {"z": 0.5, "warmup": 3},
        "adagc": {"relative": 0.5, "absolute": 0.3, "warmup": 3},
        "update-rms": {"max_rms": 0.05},
    }
    changes = {"max_norm": 0.05, "max_value": 0.001, "z": 0.1, "alpha": 0.1, "warmup": 6}
    changes |= {"relative": 0.9, "absolute": 0.1, "beta": 0.1, "max_rms": 0.01}
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for kind in SECTIONS["clip"]:
        name = kind.model_fields["name"].default
        own = {f"clip.{key}": value for key, value in settings[name].items()}
        base = {"clip.name": name, "optimizer.name": "sgd", "optimizer.lr": 0.5, "schedule.warmup": 0.0} | own
        for field in kind.model_fields:
            found[f"clip[{name}].{field}"] = (base, changes.get(field))
        found[f"clip[{name}].name"] = (base, "none")
    found["clip[none].name"] = ({"clip.name": "none", "optimizer.name": "sgd"}, "norm")
    return found


def recovery_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    """Return the hyperparameters of recovery, on a run whose every sixth update is a fault."""
    faults = {"run.spike_every": 6, "run.spike_scale": 1e38, "clip.name": "none"}
    spikes = {"run.spike_every": 21, "run.spike_scale": 50.0}
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for kind in SECTIONS["recovery"]:
        name = kind.model_fields["name"].default
        for field, other in {"at_most": 1, "lr_factor": 0.9}.items():
            if field in kind.model_fields:
                found[f"recovery[{name}].{field}"] = (faults | {"recovery.name": name}, other)
        found[f"recovery[{name}].spike"] = (spikes | {"recovery.name": name}, 2.0)
        found[f"recovery[{name}].name"] = (faults | {"recovery.name": name}, "skip" if name == "stop" else "stop")
    return found

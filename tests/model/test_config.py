import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from functools import cache
from itertools import product, zip_longest
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from model.config import TrainConfig
from model.data.corpus import Text
from model.data.corpus_base import CorpusBase
from model.optim.optimizers import SGD
from model.section import component, flat, updated
from tests.support.tiny import UPDATE, corpus, shared, text, tiny


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


EXAMPLES = [
    {},
    {"optimizer.beta2_half_life": 5e4, "optimizer.decay_horizon": 1e6, "regularization.ema_half_life": 2e4},
    {"optimizer.name": "sgd", "optimizer.nesterov": True, "clip.name": "none"},
    {"schedule.name": "wsd", "schedule.floor": 0.25, "regularization.mlp_dropout": 0.1},
    {"data.name": "lines", "data.path": "some/file.txt", "tokenizer.name": "chars", "run.rungs": 3},
    {"model.mlp": "swiglu", "model.init_std": 0.1, "run.seed": 2**63 - 1},
]


@pytest.mark.parametrize("values", EXAMPLES, ids=str)
def test_a_config_survives_json(values):
    config = updated(TrainConfig(), values)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert TrainConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("values", EXAMPLES, ids=str)
def test_flat_and_updated_are_inverse(values):
    config = updated(TrainConfig(), values)
    assert updated(TrainConfig(), flat(config)) == config
    assert flat(updated(TrainConfig(), flat(config))) == flat(config)
    assert {path: flat(config)[path] for path in values} == values
    assert updated(config, {}) == config


def test_a_config_is_two_levels_deep():
    assert all(path.count(".") == 1 for path in flat(TrainConfig()))


def test_another_component_keeps_the_explicit_fields_that_it_has():
    explicit = {"optimizer.lr": 0.02, "optimizer.beta1": 0.8, "optimizer.weight_decay": 0.3}
    config = updated(updated(TrainConfig(), explicit), {"optimizer.name": "sgd"})
    assert config.optimizer.model_dump() == {
        **SGD().model_dump(),
        "lr": 0.02,
        "weight_decay": 0.3,
    }
    # what was not said takes the new component's default
    assert updated(TrainConfig(), {"optimizer.name": "sgd"}).optimizer.lr == 0.1
    both = updated(TrainConfig(), {"optimizer.momentum": 0.5, "optimizer.name": "sgd"})
    assert both.optimizer.momentum == 0.5


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.lrr": 0.1},
        {"optimizr.lr": 0.1},
        {"optimizer.momentum": 0.9},
        {"optimizer.lr.peak": 0.1},
        {"optimizer.name": "adagrad"},
        {"run.tokens": 0},
        {"optimizer.beta2": 1.0},
        {"regularization.dropout": 1.0},
        {"optimizer.lr": math.inf},
        {"optimizer.lr": math.nan},
        {"model.n_head": 5},
        {"model.n_embd": 12, "model.n_head": 4, "model.position": "rope"},
        {"run.tokens": 100},
        {"run.align": 700, "run.tokens": 8 * 800, "run.batch_size": 12},
        {"optimizer.scale_lr": "linear"},
        {"optimizer.scale_lr_tokens": 512},
        {"optimizer.scale_lr": 1.5, "optimizer.scale_lr_tokens": 512},
        {"optimizer.beta2": None},
        {"optimizer.name": "sgd", "optimizer.weight_decay": None},
        {"run.spike_every": 5},
        {"run.spike_scale": 5.0},
        {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.nesterov": True},
        {"model.parametrization": "mup"},
    ],
    ids=str,
)
def test_a_wrong_value_or_key_is_refused(values):
    with pytest.raises(ValidationError):
        updated(TrainConfig(), values)


def test_a_config_cannot_be_written_to():
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().run.seed = 1


def test_messages_say_the_rule_and_the_value():
    with pytest.raises(ValidationError, match="n_embd must be a multiple of n_head, got 96 and 5"):
        updated(TrainConfig(), {"model.n_head": 5})
    with pytest.raises(ValidationError, match=r"rungs x batch_size x grad_accum x context = 4096.*got 100"):
        updated(TrainConfig(), {"run.tokens": 100})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer.head_lr": 0.1}, "optimizer.head_lr: has no effect on a tied head.*got 0.1"),
        ({"optimizer.head_decay": 0.1}, "optimizer.head_decay: has no effect on a tied head.*got 0.1"),
        (
            {"schedule.name": "onecycle", "schedule.beta1_dip": 0.8, "optimizer.name": "sgd"},
            "schedule.beta1_dip: sgd has no beta1.*got 0.8",
        ),
        ({"model.document_mask": True, "data.layout": "documents"}, "model.document_mask: .*data.layout=stream"),
        (
            {"model.norm_gain": "none", "optimizer.scalar_lr": 0.1},
            "optimizer.scalar_lr: the model has no gains.*got 0.1",
        ),
        ({"model.norm_gain": "none", "optimizer.scalar_decay": 0.1}, "optimizer.scalar_decay: the model has no gains"),
        (
            {"schedule.name": "onecycle", "schedule.beta1_dip": 0.9},
            "schedule.beta1_dip: must be below optimizer.beta1 = 0.9, got 0.9",
        ),
        (
            {"schedule.name": "onecycle", "schedule.warmup": 0.0, "schedule.start": 0.2},
            "start has no effect if warmup is 0",
        ),
        ({"schedule.name": "wsd", "schedule.floor": 1.0, "schedule.decay": 0.5}, "decay has no effect if floor is 1"),
        (
            {"optimizer.name": "lion", "optimizer.beta1": 0.0, "optimizer.beta2": 0.5},
            "beta2 has no effect if beta1 is 0",
        ),
        (
            {f"regularization.{site}_dropout": 0.1 for site in ("embedding", "attention", "residual", "mlp")}
            | {"regularization.dropout": 0.2},
            "dropout has no effect if every site has a probability",
        ),
        (
            {
                "optimizer.name": "muon",
                "optimizer.adam_lr": 0.1,
                "optimizer.embedding_lr": 0.1,
                "optimizer.scalar_lr": 0.1,
            },
            "optimizer.adam_lr: has no effect if every group has its own rate.*got 0.1",
        ),
        (
            {"model.name": "moe", "run.compile": "on"},
            "run.compile: must be auto or off for a mixture of experts.*got on",
        ),
        ({"run.attention": "explicit", "regularization.dropout": 0.1}, "run.attention: .*leave it auto, got explicit"),
    ],
    ids=str,
)
def test_a_field_that_means_nothing_in_a_combination_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        updated(TrainConfig(), values)


def test_every_field_says_what_it_means():
    for key, kinds in SECTIONS.items():
        for kind in kinds:
            assert (kind.__doc__ or "").strip(), kind
            for name, field in kind.model_fields.items():
                assert name == "name" or (field.description or "").strip(), f"{key}.{name} of {kind.__name__}"


def test_every_field_has_a_bounded_type():
    for kinds in SECTIONS.values():
        for kind in kinds:
            for name, field in kind.model_fields.items():
                numbers = {int, float} & {field.annotation, *get_args(field.annotation)}
                bounded = field.metadata or get_origin(field.annotation) is Literal or not numbers
                bounded = bounded or any(hasattr(a, "__metadata__") for a in get_args(field.annotation))
                assert bounded, f"{kind.__name__}.{name}"


def test_a_word_finds_its_component():
    config = TrainConfig()
    for key, kinds in SECTIONS.items():
        for kind in kinds:
            if "name" in kind.model_fields and len(kinds) > 1:
                assert component(config, key, kind.model_fields["name"].default) is kind
    assert component(config, "optimizer", "adagrad") is None


LOOSE = [
    {"data.drop_documents": 0.1, "data.shuffle_documents": True},
    {"data.curriculum": "short"},
    {"optimizer.lr": 0.3},
    {"optimizer.beta2": 0.5},
    {"optimizer.weight_decay": 0.0},
    {"schedule.name": "wsd"},
    {"schedule.warmup": 0.3},
    {"clip.max_norm": 3.0},
    {"optimizer.embedding_lr": 0.1},
    {"optimizer.scale_lr": "linear", "optimizer.scale_lr_tokens": 512},
    {"optimizer.scale_lr": 0.25, "optimizer.scale_lr_tokens": 512},
    {"optimizer.beta1_half_life": 2e4, "optimizer.beta2_half_life": 5e4, "optimizer.decay_horizon": 1e6},
    {"schedule.name": "onecycle", "schedule.beta1_dip": 0.5},
    {"run.spike_every": 10, "run.spike_scale": 50.0},
    {"regularization.mlp_dropout": 0.3},
    {"regularization.dropout": 0.3, "regularization.attention_dropout": 0.0},
    {"run.tokens": 800_000},
    {"run.rungs": 3},
    {"run.align": 1024},
    {"run.grad_accum": 2},
    {"run.seed": 7},
    {"run.keep_checkpoints": "none"},
]
TIGHT = [
    {"data.synthetic": 0.1},
    {"data.layout": "documents"},
    {"tokenizer.vocab_size": 300},
    {"model.n_layer": 1},
    {"model.n_head": 2},
    {"model.norm_eps": 1e-3},
    {"model.init_std": 0.1},
    {"optimizer.name": "adam"},
    {"optimizer.name": "muon"},
    {"optimizer.layer_decay": 0.9},
    {"clip.name": "none"},
    {"clip.name": "zclip"},
    {"regularization.ema": 0.9},
    {"recovery.name": "skip"},
    {"recovery.spike": 5.0},
    {"run.attention": "explicit"},
    {"regularization.dropout": 0.1},
    {"regularization.attention_dropout": 0.1},
    {"run.batch_size": 4},
    {"run.precision": "bf16"},
    {"run.device": "cpu"},
    {"run.compile": "on"},
]


@pytest.mark.parametrize("values", LOOSE, ids=str)
def test_runs_that_differ_in_numbers_share_a_pack(values):
    assert updated(TrainConfig(), values).pack_key() == TrainConfig().pack_key()


@pytest.mark.parametrize("values", TIGHT, ids=str)
def test_runs_that_differ_in_shape_do_not_share_a_pack(values):
    assert updated(TrainConfig(), values).pack_key() != TrainConfig().pack_key()


def test_marks_are_the_first_updates_at_or_past_equal_shares():
    for tokens, rungs, batch_size, align in product((640, 999, 1000, 5000), (1, 3, 7, 10), (1, 3, 4), (0, 48, 64, 100)):
        values = {"run.tokens": tokens, "run.rungs": rungs, "run.batch_size": batch_size, "run.align": align}
        try:
            config = tiny(values)
        except ValidationError:
            continue
        update, marks = config.update_tokens(), config.marks()
        spacing = Fraction(tokens, rungs)
        step = align or update
        if step <= spacing:
            spacing = Fraction(max(1, round(spacing / step)) * step)
        assert marks == [math.ceil(rung * spacing / update) for rung in range(1, rungs + 1)], values
        assert len(set(marks)) == rungs, values
        assert abs(marks[-1] * update - tokens) <= rungs * step / 2 + update, values


def test_reading_a_config_does_not_load_torch():
    code = "import sys, model.config; model.config.TrainConfig(); sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=root, env=dict(os.environ))
    assert done.returncode == 0

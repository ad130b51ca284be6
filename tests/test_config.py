import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from model.config import TrainConfig
from model.corpus import Splitting, Text
from model.section import component, flat, updated
from tests.tiny import UPDATE, corpus, curves, tiny


def members(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections of a field: one, or the members of a union."""
    return [kind for kind in (get_args(annotation) or (annotation,)) if isinstance(kind, type)]


SECTIONS = {key: members(field.annotation) for key, field in TrainConfig.model_fields.items()}


def knobs() -> list[str]:
    """Return "section.field", or "section[member].field" where the section is a union, for every field there is."""
    return [
        f"{key}[{kind.model_fields['name'].default}].{name}" if len(kinds) > 1 else f"{key}.{name}"
        for key, kinds in SECTIONS.items()
        for kind in kinds
        for name in kind.model_fields
    ]


IMMUNE = {
    "model.name": "there is one architecture",
    "run.device": "where, not what",
    "run.compile": "how fast, not what: test_compiled_training_equals_eager",
    "run.keep_checkpoints": "read by who saves, not by the trainer",
}


def table() -> str:
    """Write the tiny text as a table of two columns that hold its lines in different order."""
    path = Path(corpus()).with_suffix(".jsonl")
    lines = Path(corpus()).read_text("utf-8").split("\n")
    rows = zip(lines, lines[::-1], strict=True)
    path.write_text("\n".join(json.dumps({"a": a, "b": b}) for a, b in rows))
    return str(path)


def cases() -> dict[str, tuple[dict[str, Any], Any]]:
    """Return for each knob the other settings under which it is in force, and another value for it."""
    found: dict[str, tuple[dict[str, Any], Any]] = {
        "tokenizer[bytes].name": ({}, "chars"),
        "tokenizer[chars].name": ({"tokenizer.name": "chars"}, "bpe"),
        "tokenizer[bpe].name": ({"tokenizer.name": "bpe"}, "bytes"),
        "tokenizer[bpe].vocab_size": ({"tokenizer.name": "bpe"}, 300),
        "model.n_layer": ({}, 2),
        "model.n_head": ({}, 4),
        "model.n_embd": ({}, 24),
        "model.context": ({}, 8),
        "model.norm": ({}, "rmsnorm"),
        "model.norm_eps": ({}, 0.1),
        "model.position": ({}, "rope"),
        "model.mlp": ({}, "swiglu"),
        "model.mlp_ratio": ({}, 2.0),
        "model.bias": ({"optimizer.lr": 0.1}, True),
        "model.tied": ({}, False),
        "model.init_std": ({}, 0.1),
        "clip[norm].name": ({"clip.max_norm": 0.1, "optimizer.name": "sgd"}, "none"),
        "clip[norm].max_norm": ({"optimizer.name": "sgd"}, 0.1),
        "clip[none].name": ({"clip.name": "none", "optimizer.name": "sgd"}, "norm"),
        "regularization.dropout": ({}, 0.2),
        "run.tokens": ({}, 12 * UPDATE),
        "run.rungs": ({}, 4),
        "run.align": ({}, 3 * UPDATE),
        "run.batch_size": ({}, 2),
        "run.grad_accum": ({}, 2),
        "run.seed": ({}, 1),
        "run.precision": ({"optimizer.lr": 0.1}, "bf16"),
    }
    for site in ("embedding", "attention", "residual", "mlp"):
        found[f"regularization.{site}_dropout"] = ({"optimizer.lr": 0.1}, 0.5)
    return found | data_cases() | optimizer_cases() | schedule_cases()


def data_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    lines = {"data.name": "lines", "data.path": corpus()}
    columns = {"data.name": "table", "data.path": table(), "data.column": "a"}
    split = {"layout": "documents", "val_fraction": 0.2, "test_fraction": 0.2, "split_seed": 1, "max_documents": 20}
    found: dict[str, tuple[dict[str, Any], Any]] = {"data[table].column": (columns, "b")}
    for name, base in (("text", {}), ("lines", lines), ("table", columns)):
        found[f"data[{name}].name"] = (base, "text" if name == "lines" else "lines")
        found[f"data[{name}].path"] = (base, Path(base.get("data.path", corpus())).name)
        for field, other in split.items():
            found[f"data[{name}].{field}"] = (base, other)
    return found


def optimizer_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    changes = {
        "lr": 3e-3,
        "beta1": 0.5,
        "beta2": 0.5,
        "alpha": 0.5,
        "eps": 1e-2,
        "weight_decay": 3.0,
        "momentum": 0.5,
        "nesterov": True,
    }
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for kind in SECTIONS["optimizer"]:
        name = kind.model_fields["name"].default
        base = {"optimizer.name": name, "model.bias": True, "schedule.warmup": 0.0}
        for field in kind.model_fields:
            found[f"optimizer[{name}].{field}"] = (base, changes.get(field))
        found[f"optimizer[{name}].name"] = (base, "adam" if name == "adamw" else "adamw")
        found[f"optimizer[{name}].decay"] = (base | {"optimizer.weight_decay": 3.0, "optimizer.lr": 0.03}, "all")
    return found


def schedule_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    changes = {"warmup": 0.5, "floor": 0.9, "decay": 1.0}
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for kind in SECTIONS["schedule"]:
        name = kind.model_fields["name"].default
        base = {"schedule.name": name}
        for field in kind.model_fields:
            found[f"schedule[{name}].{field}"] = (base, changes.get(field))
        found[f"schedule[{name}].name"] = (base, "cosine" if name != "cosine" else "wsd")
    return found


def unreachable(knob: str) -> bool:
    """Return whether a knob belongs to a corpus that is not on every machine; `text` has the same fields."""
    key, _, field = knob.partition(".")
    return key.startswith("data[") and (field == "name" or field in Splitting.model_fields)


@cache
def fingerprint(config: TrainConfig) -> list[float]:
    """Train and return what was seen, rung by rung."""
    from model.train import Trainer

    numbers = []
    for m in curves(Trainer([config]))[0]:
        numbers += [m.tokens, m.updates, m.val_loss, m.train_loss, m.val_bpb]
    return numbers


def test_every_knob_is_a_case_or_has_a_reason_not_to_be():
    missing = [k for k in knobs() if k not in cases() and k not in IMMUNE and not unreachable(k)]
    assert missing == [], "a new field needs a case in cases(), or a reason in IMMUNE"
    assert [k for k in [*cases(), *IMMUNE] if k not in knobs()] == []


@pytest.mark.parametrize("knob", [k for k in knobs() if k not in IMMUNE])
def test_turning_a_knob_changes_the_run(knob, tmp_path, monkeypatch):
    if knob not in cases():
        assert unreachable(knob)
        assert set(Splitting.model_fields) <= set(Text.model_fields)
        return
    settings, other = cases()[knob]
    before = tiny(settings)
    path = knob.partition("[")[0].partition(".")[0] + "." + knob.rpartition(".")[2]
    if path == "data.path":  # the same name in another folder, with another text
        (tmp_path / other).write_text(Path(before.data.path).read_text("utf-8").replace("e", "a").replace("o", "u"))
        monkeypatch.chdir(tmp_path)
    after = updated(before, {path: other})
    assert flat(after)[path] != flat(before)[path]
    a, b = fingerprint(before), fingerprint(after)
    # Far above rounding: dropout once changed the last bits, by its way of computing attention, and dropped nothing.
    assert len(a) != len(b) or max(abs(x - y) for x, y in zip(a, b, strict=True)) > 1e-5


def test_keeping_checkpoints_and_naming_the_device_change_no_bit():
    plain = tiny()
    for values in ({"run.keep_checkpoints": "all"}, {"run.device": "cpu"}, {"run.compile": "off"}):
        assert fingerprint(updated(plain, values)) == fingerprint(plain)


EXAMPLES = [
    {},
    {"optimizer.name": "sgd", "optimizer.nesterov": True, "clip.name": "none"},
    {"schedule.name": "wsd", "schedule.floor": 0.25, "regularization.mlp_dropout": 0.1},
    {"data.name": "lines", "data.path": "some/file.txt", "tokenizer.name": "chars", "run.rungs": 3},
    {"model.mlp": "swiglu", "model.init_std": 0.1, "run.seed": 2**63 - 1},
]


@pytest.mark.parametrize("values", EXAMPLES, ids=str)
def test_a_config_comes_back_from_json(values):
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
        "name": "sgd",
        "lr": 0.02,
        "decay": "matrices",
        "momentum": 0.9,
        "nesterov": False,
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
    {"optimizer.lr": 0.3},
    {"optimizer.beta2": 0.5},
    {"optimizer.weight_decay": 0.0},
    {"schedule.name": "wsd"},
    {"schedule.warmup": 0.3},
    {"clip.name": "none"},
    {"clip.max_norm": 3.0},
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
    {"data.layout": "documents"},
    {"tokenizer.vocab_size": 300},
    {"model.n_layer": 1},
    {"model.n_head": 2},
    {"model.norm_eps": 1e-3},
    {"model.init_std": 0.1},
    {"optimizer.name": "adam"},
    {"optimizer.decay": "all"},
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
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=root, env=dict(os.environ))
    assert done.returncode == 0

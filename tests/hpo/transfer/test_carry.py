"""A configuration in a file is trained at another scale: what is printed, what changes, and what the run records."""

from pathlib import Path
from typing import Any

import pytest

from hpo.commands.check import check_file
from hpo.commands.train import train_config
from hpo.config.files import config_text
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.errors import Problem
from hpo.study.scale import scale_fields
from hpo.transfer.rule import Rule
from model.section import updated
from tests.support.tiny import UPDATE, tiny

D0 = 24 * UPDATE
SEARCHED = {"optimizer.beta2_half_life": 2000.0, "run.rungs": 2}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exported(values: dict[str, Any] | None = None, **provenance: Any) -> Path:
    """Write a configuration as `hpo export` does; return the path of the file."""
    config = tiny(SEARCHED | (values or {}))
    origin = {"study": "tiny", "trial": 7, "value": 2.0, "state": "COMPLETE", "searched": scale_fields(config)}
    Path("best.yaml").write_text(config_text(config, origin | provenance))
    return Path("best.yaml")


def trained(path: Path, *overrides: str, rule: Rule | None = None) -> dict[str, Any]:
    """Train a file; return the configuration that the run has stored."""
    before = set(Path("out").glob("*"))
    assert train_config(path, overrides, Path("out"), resume=False, rule=rule) == 0
    (run,) = set(Path("out").glob("*")) - before
    tree: dict[str, Any] = parse_yaml((run / "config.yaml").read_text())
    return tree


def test_a_longer_run_copies_by_default_and_says_what_each_rule_would_give(capsys: pytest.CaptureFixture[str]) -> None:
    tree = trained(exported(), f"run.tokens={64 * D0}")
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "note: trial 7 of tiny was found at another scale: run.tokens 1,536 -> 98,304 (64 times)"
    assert lines[1].startswith("optimizer.lr and run.batch_size do not carry over to another length: in 1,911 public")
    # 64 tokens per update, lr 1e-3, decay 0.1: 64 / (1e-4 * 1536) runs
    assert (
        lines[2]
        == "optimizer.weight_decay averages the weights over 417 times the run where it was found, 6.51 times here"
    )
    rows = {line.split()[0]: line.split()[1:5] for line in lines[3:8]}
    assert rows["rule"][:3] == ["run.batch_size", "optimizer.lr", "optimizer.weight_decay"]
    assert rows["(found)"][:3] == rows["copy"][:3] == ["4", "0.001", "0.1000"]
    assert rows["nanochat"] == ["20", "0.002236", "0.003494", "karpathy/nanochat,"]
    assert rows["horizon"] == ["4", "0.001", "0.001563", "arXiv:2507.07101"]
    assert lines[8] == "rule fitted: no ladder of tiny can be read: no storage at runs/hpo.db; `hpo launch` creates it"
    assert lines[9] == "applied: copy (the default); other rules: --rule nanochat, --rule horizon, --rule fitted"
    assert (tree["run"]["batch_size"], tree["optimizer"]["lr"], tree["optimizer"]["weight_decay"]) == (4, 1e-3, 0.1)
    assert tree["provenance"]["transfer"]["rule"] == "copy"
    assert not {"value", "state"} & tree["provenance"].keys()  # of the trial, not of this run


def test_a_rule_is_applied_and_recorded_with_the_values_before_and_after() -> None:
    tree = trained(exported(), f"run.tokens={64 * D0}", rule=Rule.nanochat)
    assert (tree["run"]["batch_size"], tree["run"]["tokens"]) == (20, 64 * D0)
    record = tree["provenance"]["transfer"]
    assert record["rule"] == "nanochat"
    assert record["changed"] == {
        "run.batch_size": [4, 20],
        "optimizer.lr": [1e-3, tree["optimizer"]["lr"]],
        "optimizer.weight_decay": [0.1, tree["optimizer"]["weight_decay"]],
    }
    assert record["to"]["run.batch_size"] == 20
    assert tree["provenance"]["searched"]["run.tokens"] == D0


def test_rules_are_relative_to_the_search_whatever_the_rule_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    path = exported()
    once = trained(path, f"run.tokens={4 * D0}", rule=Rule.nanochat)
    Path("long.yaml").write_text(dump_yaml(once))
    capsys.readouterr()
    assert trained(Path("long.yaml"))["run"] == once["run"]
    assert capsys.readouterr().err.splitlines()[0] == (
        "note: trial 7 of tiny was carried over to this scale by the rule nanochat"
    )
    longer = f"run.tokens={8 * D0}"
    for rule in (Rule.copy, Rule.nanochat, Rule.horizon):
        again, direct = (trained(file, longer, rule=rule) for file in (Path("long.yaml"), path))
        assert [again[key] for key in ("run", "optimizer")] == [direct[key] for key in ("run", "optimizer")], rule
        assert again["provenance"]["transfer"] == direct["provenance"]["transfer"]
    capsys.readouterr()
    kept = trained(Path("long.yaml"), longer)  # no rule: the values of the file, and it says so
    assert kept["optimizer"] == once["optimizer"]
    said = capsys.readouterr().err
    assert "applied: the values of the file; other rules: --rule copy, --rule nanochat" in said
    assert f"(file)    {once['run']['batch_size']} " in said


def test_a_file_that_was_edited_by_hand_is_noted_too(capsys: pytest.CaptureFixture[str]) -> None:
    text = exported().read_text()
    Path("best.yaml").write_text(text.replace(f"tokens: {D0}\n", f"tokens: {2 * D0}\n", 1))
    trained(Path("best.yaml"))
    assert "found at another scale: run.tokens 1,536 -> 3,072 (2 times)" in capsys.readouterr().err


def test_another_batch_names_what_carries_over_and_what_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    tree = trained(exported(), "run.batch_size=8", rule=Rule.horizon)
    said = capsys.readouterr().err
    assert "tokens per update 64 -> 128 (2 times)" in said
    assert "optimizer.lr does not carry over to another batch; optimizer.scale_lr" in said
    assert "optimizer.beta1: the half-life in tokens is 2 times as long as where it was found\n" in said
    assert "optimizer.beta2_half_life: carries over\n" in said
    assert tree["optimizer"]["beta1"] == 0.9**2
    assert tree["optimizer"]["beta2_half_life"] == 2000
    assert tree["optimizer"]["weight_decay"] == 0.2


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("standard", "optimizer.lr does not carry over to another model.n_embd, and only the rule fitted changes it"),
        ("mup", "model.n_embd: carries over by construction, with model.parametrization mup"),
    ],
)
def test_another_width_carries_over_by_construction_only(
    kind: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {} if kind == "standard" else {"model.parametrization": kind, "model.base_width": 16}
    trained(exported(base), "model.n_embd=32", "model.n_head=4", rule=None)
    assert line in capsys.readouterr().err


def test_a_width_of_wider_heads_does_not_carry_over(capsys: pytest.CaptureFixture[str]) -> None:
    best = exported({"model.parametrization": "mup", "model.base_width": 16})
    trained(best, "model.n_embd=32", rule=None)
    line = "model.n_embd: carries over only with heads of 8 channels, as where it was found; set model.n_head=4"
    assert line in capsys.readouterr().err


def test_what_no_study_found_is_trained_without_a_note_and_takes_rules(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text(config_text(tiny(), {}))
    tree = trained(Path("own.yaml"), f"run.tokens={4 * D0}")
    assert "note:" not in capsys.readouterr().err
    assert "transfer" not in tree["provenance"]
    tree = trained(Path("own.yaml"), f"run.tokens={4 * D0}", rule=Rule.horizon)
    assert tree["optimizer"]["weight_decay"] == 0.1 / 4
    trained(exported(), rule=Rule.horizon)
    assert "note: --rule horizon changes nothing, because the run has the scale" in capsys.readouterr().err


def test_a_file_of_version_0_1_is_noted_with_its_own_scale(capsys: pytest.CaptureFixture[str]) -> None:
    path = exported(searched={})
    assert trained(path, "run.tokens=3072")["provenance"]["searched"]["run.tokens"] == D0
    assert "run.tokens 1,536 -> 3,072" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("provenance", "overrides", "rule", "message"),
    [
        ({}, ["run.tokens=3072"], Rule.fitted, "--rule fitted: no ladder of tiny can be read: no storage at runs/hpo"),
        (
            {},
            ["run.tokens=2048", "run.rungs=8"],
            Rule.nanochat,
            "--rule nanochat: run.tokens must be at least rungs x batch_size x grad_accum x context",
        ),
        ({"searched": 5}, [], None, "best.yaml: provenance.searched: must be a mapping, got 5"),
        (
            {"searched": {"run.tokens": -1}},
            [],
            None,
            "best.yaml: provenance.searched.run.tokens: must be greater than 0",
        ),
        (
            {"transfer": {"changed": 5}},
            [],
            None,
            "best.yaml: provenance.transfer.changed: must map fields to two values",
        ),
    ],
    ids=str,
)
def test_bad_input_is_one_message(
    provenance: dict[str, Any], overrides: list[str], rule: Rule | None, message: str
) -> None:
    path = exported({"run.batch_size": 16, "run.tokens": 2 * 16 * 16} if rule is Rule.nanochat else None, **provenance)
    with pytest.raises(Problem) as refused:
        train_config(path, overrides, Path("out"), resume=False, rule=rule)
    assert str(refused.value).startswith(message)
    assert not Path("out").exists()


def test_the_exported_form_of_a_config_is_the_one_that_a_longer_run_stores() -> None:
    tree = trained(exported(), f"run.tokens={4 * D0}", rule=Rule.nanochat)
    beta2 = updated(tiny(SEARCHED), {"run.batch_size": tree["run"]["batch_size"], "run.tokens": 4 * D0}).derived()
    assert tree["optimizer"]["beta2"] is None
    assert tree["provenance"]["derived"] == beta2


def test_a_search_that_starts_from_a_file_of_another_scale_says_so() -> None:
    def noted(path: Path, **base: Any) -> list[str]:
        space = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
        Path("next.yaml").write_text(dump_yaml({"base": {"from": str(path), **base}, "space": space}))
        return check_file("next.yaml", []).splitlines()[1:]

    longer = {"run.tokens": 4 * D0}
    (note,) = noted(exported(), **longer)
    assert note.startswith(
        "note: base.from: best.yaml was found at another scale: run.tokens 1,536 -> 6,144 (4 times). Its values are"
    )
    assert noted(exported()) == []
    Path("mine.yaml").write_text(config_text(tiny(), {}))
    assert noted(Path("mine.yaml"), **longer) == [], "nobody searched it"
    record = {"rule": "nanochat", "to": scale_fields(tiny(SEARCHED | longer)), "changed": {}}
    assert noted(exported(transfer=record), **longer) == [], "it was carried over"
    assert noted(exported(transfer=[]), **longer) == [
        "note: best.yaml: provenance.transfer: must be a mapping, got []"
    ], "only its values are used"

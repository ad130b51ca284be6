"""The rule `fitted`: values of the ladder of a search, in every command that carries a configuration over."""

from pathlib import Path

import pytest

from hpo.analysis.export import select_trial
from hpo.analysis.snapshot import Snapshot
from hpo.commands.export import AtLength, export_at_length
from hpo.config.yaml import parse_yaml
from hpo.errors import Problem
from hpo.evidence.ablate import AblateRequest, plan_ablation
from hpo.evidence.confirm import ConfirmRequest, plan_confirmation
from hpo.evidence.length_rule import LengthRule
from hpo.storage.store import Store, open_store
from hpo.study.spec import Study
from hpo.transfer.rule import Rule
from model.config import TrainConfig
from model.section import flat
from tests.support.planted_gpt import BEST_LR, EXPONENT, TOKENS, planted_ladder, planted_search

LONG = 16 * TOKENS


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    """One kind of storage is enough for snapshots."""
    return f"sqlite:///{tmp_path}/hpo.db"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Snapshot]:
    """A search without a ladder."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        store = open_store(f"sqlite:///{folder}/hpo.db", create=True)
        return store, planted_search(store, folder)


def arms_of(study: Study) -> dict[str, dict[str, object]]:
    return dict(study.file.arms or {})


def request(**keys: object) -> ConfirmRequest:
    return ConfirmRequest(
        **{"study": None, "top": None, "seeds": 6, "tokens": LONG, "name": None, "test": None} | keys  # type: ignore[arg-type]
    )


def planned(store: Store, snapshot: Snapshot, asked: ConfirmRequest) -> Study:
    return plan_confirmation(snapshot, "c", asked, 1000, LengthRule(store, snapshot, asked.tokens, asked.rule))


def test_without_a_ladder_the_rule_fitted_names_the_command_that_trains_one(
    searched: tuple[Store, Snapshot], capsys: pytest.CaptureFixture[str]
) -> None:
    store, snapshot = searched
    missing = "no ladder of lawful has finished; `hpo transfer --study lawful --to run.tokens=24576` trains one"
    best = select_trial(snapshot, None)
    text = export_at_length(store, snapshot, best, "", AtLength(LONG, None))
    assert f"  rule fitted: {missing}\n" in capsys.readouterr().err
    assert parse_yaml(text)["provenance"]["transfer"]["rule"] == "copy"
    with pytest.raises(Problem, match=f"--rule fitted: {missing}"):
        export_at_length(store, snapshot, best, "", AtLength(LONG, Rule.fitted))
    with pytest.raises(Problem, match=f"--rule fitted: {missing}"):
        LengthRule(store, snapshot, LONG, Rule.fitted).values("trial 1", TrainConfig())


@pytest.mark.parametrize("rule", [None, Rule.copy, Rule.nanochat, Rule.horizon])
def test_confirm_carries_every_arm_over_by_the_rule_and_prints_it_once(
    searched: tuple[Store, Snapshot], rule: Rule | None, capsys: pytest.CaptureFixture[str]
) -> None:
    store, snapshot = searched
    plan = planned(store, snapshot, request(rule=rule))
    said = capsys.readouterr().err
    assert said.count("was found at another scale: run.tokens 1,536 -> 24,576 (16 times)") == 1
    assert said.count("applied:") == 1
    assert plan.file.about["rule"] == str(rule or "copy")
    found = plan_confirmation(snapshot, "c", request(tokens=None), 1000)
    configs, before = ({a: flat(p.configured(v)) for a, v in arms_of(p).items()} for p in (plan, found))
    assert len(configs) == 4
    decay = {Rule.horizon: 0.1 / 16, Rule.nanochat: 0.1 * (12 / 4) ** 0.5 / 16}
    for arm, config in configs.items():
        assert config["run.batch_size"] == (12 if rule is Rule.nanochat else 4)
        assert config["optimizer.weight_decay"] == pytest.approx(decay.get(rule, 0.1) if rule else 0.1)
        ratio = config["optimizer.lr"] / before[arm]["optimizer.lr"]
        assert ratio == pytest.approx(3**0.5 if rule is Rule.nanochat else 1)


def test_ablate_carries_both_configurations_over_before_it_compares_them(searched: tuple[Store, Snapshot]) -> None:
    store, snapshot = searched
    asked = AblateRequest(None, "baseline", "best", "leave-one-out", [], [], 5, LONG, None, Rule.nanochat)
    plan = plan_ablation(snapshot, "a", asked, 2000, LengthRule(store, snapshot, LONG, Rule.nanochat))
    assert list(plan.file.about["factors"]) == ["optimizer.lr"]  # batch and decay are those of both
    assert (flat(plan.base)["run.batch_size"], flat(plan.base)["run.tokens"]) == (12, LONG)
    assert flat(plan.base)["optimizer.lr"] == pytest.approx(1e-3 * 3**0.5)


@pytest.mark.parametrize("keys", [{"tokens": None}, {"tokens": 10}], ids=str)
def test_a_rule_without_a_length_and_a_length_without_updates_are_refused(
    searched: tuple[Store, Snapshot], keys: dict[str, int | None]
) -> None:
    store, snapshot = searched
    rule = (
        {"tokens": "must be used with --tokens"} if keys["tokens"] is None else {"tokens": "--tokens: must be at least"}
    )
    asked = request(**keys, rule=Rule.horizon)
    with pytest.raises(Problem, match=rule["tokens"]):
        planned(store, snapshot, asked)
    with pytest.raises(Problem, match=rule["tokens"]):
        export_at_length(store, snapshot, select_trial(snapshot, None), "", AtLength(keys["tokens"], Rule.horizon))


def test_a_ladder_gives_the_values_of_the_rule_fitted(
    here: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """The planted optimum at 16 times the tokens is BEST_LR * 16**EXPONENT."""
    snapshot = planted_search(store, here)
    planted_ladder(store, snapshot, LONG)
    best, expected = select_trial(snapshot, None), BEST_LR * 16**EXPONENT
    tree = parse_yaml(export_at_length(store, snapshot, best, "", AtLength(LONG, Rule.fitted)))
    assert tree["optimizer"]["lr"] == pytest.approx(expected, rel=0.15)
    assert tree["run"]["tokens"] == LONG
    record = tree["provenance"]["transfer"]
    assert record["rule"] == "fitted"
    assert record["source"].startswith("ladder of lawful, which predicts a value of ")
    assert record["changed"]["optimizer.lr"] == [best.params["optimizer.lr"], tree["optimizer"]["lr"]]
    plan = planned(store, snapshot, request(rule=Rule.fitted))
    arms = arms_of(plan)
    assert list(arms) == ["baseline", f"trial {best.number}"]
    assert arms["baseline"] == {}
    assert arms[f"trial {best.number}"]["optimizer.lr"] == pytest.approx(expected, rel=0.15)
    with pytest.raises(Problem, match=r"--top: must be 1 with --rule fitted.*got 2"):
        planned(store, snapshot, request(rule=Rule.fitted, top=2))
    assert "  fitted  " in capsys.readouterr().err

"""Complete studies of planted functions, each run by a worker in this process."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hpo.analysis.decisions import recompute
from hpo.config.yaml import dump_yaml
from hpo.evidence.ablate import AblateRequest, plan_ablation
from hpo.evidence.comparison import first_new_seed
from hpo.evidence.confirm import ConfirmRequest, plan_confirmation
from hpo.evidence.effects import estimate_effects
from hpo.evidence.paired import compare_arms
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from tests.evidence.planted import EFFECTS, RUNGS
from tests.support.comparisons import run_study

TRIALS = 24
PRUNERS: list[dict[str, Any]] = [
    {"name": "median"},
    {"name": "median", "peers": "finished"},
    {"name": "percentile", "percentile": 50},
    {"name": "percentile", "percentile": 50, "peers": "finished"},
    {"name": "halving"},
    {"name": "hyperband"},
    {"name": "patient", "patience": 1},
    {"name": "threshold", "upper": 3.9},
    {"name": "wilcoxon"},
]
Found = dict[str, Any]


def pruner_label(pruner: dict[str, Any]) -> str:
    """Return the name of a pruner, with its peers if they are not the default."""
    return f"{pruner['name']} of {pruner['peers']}" if "peers" in pruner else str(pruner["name"])


@contextlib.contextmanager
def _storage() -> Any:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        yield stack.enter_context(open_store("sqlite:///study.db", create=True))


def _search(store: Store, function: str, number: int, **keys: Any) -> Any:
    tree = {
        "train": f"tests.evidence.planted:{function}",
        "config": "tests.evidence.planted:Config",
        "rungs": RUNGS,
        "base": {"study": number},
        "space": {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}},
        "budget": {"trials": TRIALS},
        "seed": number,
        **keys,
    }
    path = Path("planted.yaml")
    path.write_text(dump_yaml(tree))
    return run_study(store, load_study(str(path)))


def _decisions(snapshot: Any) -> tuple[int, int]:
    """Return the number of pruned trials, and for how many of them the stored curves give the same decision."""
    pruned = [t for t in snapshot.trials if t.state == State.PRUNED]
    decisions = [recompute(snapshot, t) for t in pruned]
    return len(pruned), sum(decision is not None and decision.prunes for decision in decisions)


def confirmed(function: str, number: int, sequential: bool = False) -> Found:
    """Search, confirm with the defaults of `hpo confirm`, and return the gain of the best trial in both.

    sequential: confirm with the defaults of `hpo confirm --sequential`.
    """
    with _storage() as store:
        snapshot = _search(store, function, number)
        best, baseline = snapshot.best(), snapshot.baseline()
        request = ConfirmRequest(None, None, None, None, None, None, sequential)
        found = run_study(store, plan_confirmation(snapshot, "confirm", request, first_new_seed(store, snapshot)))
        rows = compare_arms(found)[1:]
        return {
            "verdicts": [row.verdict for row in rows],
            "searched": best.values[0] - baseline.values[0],
            "confirmed": rows[0].difference.mean,
            "runs": max(row.n for row in rows),
            "decisions": _decisions(snapshot),
        }


def spread(number: int) -> Found:
    """Return sigma as estimated from four seeds of the baseline."""
    with _storage() as store:
        snapshot = _search(store, "nothing", number, baseline_seeds=4, budget={"trials": 4})
        return {"sigma": snapshot.noise.sigma}


def crossed(number: int) -> Found:
    """Return which planted effects are inside their confidence intervals in a factorial design of three factors."""
    with _storage() as store:
        space = {name: {"low": 0.0, "high": 1.0} for name in "abc"}
        target = {"a": 1.0, "b": 1.0, "c": 1.0}
        snapshot = _search(store, "crossed", number, space=space, baseline=[{}, target], budget={"trials": 2})
        request = AblateRequest(None, "baseline", "1", "factorial", [], [], None, None, None)
        effects = estimate_effects(run_study(store, plan_ablation(snapshot, "ablated", request, 1000)))
        return {
            "inside": {e.name: e.low <= EFFECTS[e.name] <= e.high for e in effects},
            "shown": {e.name: e.verdict != "not distinguishable from noise" for e in effects},
        }


def pruned(number: int) -> Found:
    """Return the pruning decisions of a search with weak trials; the number of the study selects the pruner."""
    pruner = PRUNERS[number % len(PRUNERS)]
    with _storage() as store:
        snapshot = _search(store, "sloped", number, pruner=pruner, base={"study": number, "rungs": 8}, rungs=8)
        return {"pruner": pruner_label(pruner), "decisions": _decisions(snapshot)}

"""The stored results of claims (claims.json), and the records that the table and the page of verdicts show."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hpo.config.validation import error_messages
from hpo.console import format_number
from hpo.errors import Problem
from hpo.evidence.claims.schema import ArithmeticTest, ArmsTest, Ledger, LedgerClaim
from hpo.evidence.claims.verdict import ClaimVerdict, ScoresByArm, decide_verdict
from hpo.runs.run_dir import write_file
from model.section import Section


class ClaimRun(Section):
    """One run of one arm."""

    arm: str
    seed: int
    value: float | None
    """Score by the metric of the claim, None if the run diverged."""
    tokens: int | None
    seconds: float | None
    study: str
    trial: int


class ClaimResult(Section):
    """The stored result of one claim."""

    test: dict[str, Any]
    """The test of the ledger at the time of the runs."""
    command: str
    """Command that repeats the test."""
    base: str = ""
    passed: bool | None = None
    """For a claim tested by a calculation: whether the pytest test passed."""
    parameters: dict[str, int] = Field(default_factory=dict)
    """Arm of the verdict -> number of trained parameters."""
    machines: tuple[dict[str, Any], ...] = ()
    """Package versions, threads and commit of the runs."""
    chosen: dict[str, str] = Field(default_factory=dict)
    """Compared arm -> the arm with the best levels of its tuned factors."""
    runs: tuple[ClaimRun, ...] = ()
    tuning: tuple[ClaimRun, ...] = ()
    """The runs that chose these levels; the verdict does not use them."""


class ClaimResults(Section):
    """The stored results of the claims of a ledger, by claim id."""

    claims: dict[str, ClaimResult] = Field(default_factory=dict)

    def result_of(self, name: str, claim: LedgerClaim) -> ClaimResult | None:
        """Return the result of a claim, or None if its test in the ledger has changed since."""
        result = self.claims.get(name)
        return result if result is not None and result.test == stored_test(claim) else None


def stored_test(claim: LedgerClaim) -> dict[str, Any]:
    """Return the test of a claim as data, without the fields that do not change what is tested."""
    return claim.test.model_dump(mode="json", exclude={"seeds", "computation"})


def load_results(path: Path) -> ClaimResults:
    """Read the results of claims; a file that does not exist has none.

    Raises:
        Problem: the file is not a file of results.
    """
    try:
        return ClaimResults.model_validate({"claims": json.loads(path.read_text("utf-8"))})
    except FileNotFoundError:
        return ClaimResults()
    except (OSError, ValueError) as error:
        why = error_messages(error, ClaimResults)[0] if isinstance(error, ValidationError) else error
        raise Problem(f"--data: must be a file of claim results, got {path}: {why}") from None


def save_result(path: Path, ledger: Ledger, name: str, result: ClaimResult) -> None:
    """Replace the result of one claim in the file; the results of other claims stay as they are."""
    results = {**load_results(path).claims, name: result}
    order = [*ledger.claims, *sorted(results.keys() - ledger.claims.keys())]
    tree = {n: results[n].model_dump(mode="json", exclude_defaults=True) for n in order if n in results}
    write_file(path, _as_json(tree) + "\n")


def _as_json(tree: Any, indent: str = "") -> str:
    """Return JSON with each innermost list or mapping on one line, so that each run is one line."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    if not any(isinstance(value, dict | list) for value in inner):
        return json.dumps(tree)
    deeper = f"{indent} "
    if isinstance(tree, dict):
        lines = [f"{json.dumps(key)}: {_as_json(value, deeper)}" for key, value in tree.items()]
        return f"{{\n{deeper}" + f",\n{deeper}".join(lines) + f"\n{indent}}}"
    return f"[\n{deeper}" + f",\n{deeper}".join(_as_json(value, deeper) for value in tree) + f"\n{indent}]"


def scores_by_arm(runs: Iterable[ClaimRun]) -> ScoresByArm:
    """Return the scores of runs by arm and seed."""
    scores: dict[str, dict[int, float | None]] = {}
    for run in runs:
        scores.setdefault(run.arm, {})[run.seed] = run.value
    return scores


def verdict_on(claim: LedgerClaim, result: ClaimResult | None) -> ClaimVerdict:
    """Return the verdict on a claim from its stored result; None: the claim was not tested yet."""
    if isinstance(claim.test, ArithmeticTest):
        outcome = claim.test.shows if result is not None and result.passed else "not run yet"
        return ClaimVerdict(None, None, None, 0, "difference", outcome)
    return decide_verdict(claim, scores_by_arm(result.runs) if result is not None else {})


def effect_text(verdict: ClaimVerdict) -> str:
    """Return the effect and its confidence interval, rounded to two digits of half the interval's width."""
    if verdict.effect is None or verdict.low is None or verdict.high is None:
        return ""
    factor, sign = 100 if verdict.unit == "share" else 1, "" if verdict.unit == "level" else "+"
    unit = {"share": " %", "level": "", "difference": "", "finished": " runs finish"}[verdict.unit]
    half_width = factor * (verdict.high - verdict.low) / 2
    decimals = max(0, 1 - math.floor(math.log10(half_width))) if half_width > 0 else 2
    ends = (verdict.effect, verdict.low, verdict.high)
    effect, low, high = (f"{factor * end:{sign}.{decimals}f}" for end in ends)
    return f"{effect}{unit} ({low} to {high})"


def verdict_record(name: str, claim: LedgerClaim, result: ClaimResult | None) -> dict[str, Any]:
    """Return one row of the table of verdicts."""
    verdict, test = verdict_on(claim, result), claim.test
    by_calculation = isinstance(test, ArithmeticTest)
    arms = [] if isinstance(test, ArithmeticTest) else test.verdict_arms()
    tokens = [run.tokens for run in result.runs if run.tokens is not None and run.arm in arms] if result else []
    passed = by_calculation and result is not None and result.passed
    return {
        "id": name,
        "claim": claim.claim,
        "claimed": claim.effect.text,
        "measured": "" if by_calculation else effect_text(verdict),
        "n": verdict.n or None,
        "tokens": " to ".join(f"{n:,}" for n in sorted({min(tokens), max(tokens)})) if tokens else None,
        "scale": scale_text(test, result),
        "verdict": verdict.verdict + (" by arithmetic" if passed else ""),
        "command": result.command if result is not None else f"hpo claims {name}",
        "note": verdict.note,
    }


def scale_text(test: ArmsTest | ArithmeticTest, result: ClaimResult | None) -> str:
    """Return the base of the runs, and the range of the parameter counts of the arms of the verdict."""
    if isinstance(test, ArithmeticTest):
        return ""
    sizes = sorted(set(result.parameters.values())) if result is not None else []
    size_range = " to ".join(f"{n:,}" for n in dict.fromkeys([*sizes[:1], *sizes[-1:]]))
    return test.base + (f", {size_range} parameters" if sizes else "")


def arm_records(name: str, claim: LedgerClaim, result: ClaimResult | None) -> list[dict[str, Any]]:
    """Return one record per arm of a claim: the number of its runs, their mean and standard deviation."""
    if result is None or isinstance(claim.test, ArithmeticTest):
        return []
    records = []
    for arm, scores in scores_by_arm(result.runs).items():
        known = [score for score in scores.values() if score is not None]
        records.append({
            "id": name,
            "arm": arm + (" *" if arm in claim.test.contrast_terms() else ""),
            "tuned": result.chosen.get(arm, "").removeprefix(f"{arm}, "),
            "runs": len(scores),
            "diverged": len(scores) - len(known) or None,
            "metric": claim.test.metric_of(result.chosen.get(arm, arm)),
            "mean": format_number(statistics.fmean(known)) if known else None,
            "sd": format_number(statistics.stdev(known)) if len(known) > 1 else None,
        })  # fmt: skip
    return records


def verdict_records(claims: Mapping[str, LedgerClaim], results: ClaimResults) -> list[dict[str, Any]]:
    """Return the table of verdicts on these claims."""
    return [verdict_record(name, claim, results.result_of(name, claim)) for name, claim in claims.items()]

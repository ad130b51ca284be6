"""What the runs of claims found, kept as data, and the page that is written from it."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hpo.config.validation import messages
from hpo.console import number
from hpo.errors import Problem
from hpo.evidence.claims.schema import ArithmeticTest, ArmsTest, Claim, Ledger
from hpo.evidence.claims.verdict import ClaimVerdict, ScoresByArm, decide_verdict
from hpo.runs.run_dir import write_file
from model.section import Section


class ClaimRun(Section):
    """One run of one arm."""

    arm: str
    seed: int
    value: float | None
    """By the metric of the claim; none: it diverged."""
    tokens: int | None
    seconds: float | None
    study: str
    trial: int


class ClaimResult(Section):
    """What was run for one claim."""

    test: dict[str, Any]
    """As the ledger had it then."""
    command: str
    base: str = ""
    passed: bool | None = None
    """Whether the calculation came out right, of a claim that is tested by one."""
    parameters: dict[str, int] = Field(default_factory=dict)
    """Arm -> weights that are trained, of the reference and of what the claim is about."""
    machines: tuple[dict[str, Any], ...] = ()
    """Versions, threads and commit of the runs."""
    chosen: dict[str, str] = Field(default_factory=dict)
    """Arm -> the level of its tuned factors that served it best."""
    runs: tuple[ClaimRun, ...] = ()
    tuning: tuple[ClaimRun, ...] = ()
    """The runs by which that was chosen; they are no part of the verdict."""


class ClaimResults(Section):
    """Those of a ledger, by the id of the claim."""

    claims: dict[str, ClaimResult] = Field(default_factory=dict)

    def result_of(self, name: str, claim: Claim) -> ClaimResult | None:
        """Return what was run for a claim as the ledger has it now."""
        found = self.claims.get(name)
        return found if found is not None and found.test == stored_test(claim) else None


def stored_test(claim: Claim) -> dict[str, Any]:
    """Return the test of a claim as data, without what may change and leaves the test the same."""
    return claim.test.model_dump(mode="json", exclude={"seeds", "computation"})


def load_results(path: Path) -> ClaimResults:
    """Read what was found so far; nothing where there is no such file.

    Raises:
        Problem: it is another file.
    """
    try:
        return ClaimResults.model_validate({"claims": json.loads(path.read_text("utf-8"))})
    except FileNotFoundError:
        return ClaimResults()
    except (OSError, ValueError) as error:
        why = messages(error, ClaimResults)[0] if isinstance(error, ValidationError) else error
        raise Problem(f"--data: {path} holds no findings of claims: {why}") from None


def save_result(path: Path, ledger: Ledger, name: str, found: ClaimResult) -> None:
    """Put a finding in place of the one that the file holds of this claim; others stay as they are."""
    held = {**load_results(path).claims, name: found}
    order = [*ledger.claims, *sorted(held.keys() - ledger.claims.keys())]
    tree = {n: held[n].model_dump(mode="json", exclude_defaults=True) for n in order if n in held}
    write_file(path, _as_json(tree) + "\n")


def _as_json(tree: Any, indent: str = "") -> str:
    """Return JSON with a line for each of the innermost lists and mappings, so that a run is one line."""
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
    found: dict[str, dict[int, float | None]] = {}
    for run in runs:
        found.setdefault(run.arm, {})[run.seed] = run.value
    return found


def verdict_on(claim: Claim, found: ClaimResult | None) -> ClaimVerdict:
    """Return the verdict on a claim by what was run for it."""
    if isinstance(claim.test, ArithmeticTest):
        shows = claim.test.shows if found is not None and found.passed else "not run yet"
        return ClaimVerdict(None, None, None, 0, "difference", shows)
    return decide_verdict(claim, scores_by_arm(found.runs) if found is not None else {})


def effect_text(of: ClaimVerdict) -> str:
    """Return the effect and its interval as a person reads them, with two digits of the interval's half."""
    if of.effect is None or of.low is None or of.high is None:
        return ""
    factor, sign = 100 if of.unit == "share" else 1, "" if of.unit == "level" else "+"
    what = {"share": " %", "level": "", "difference": "", "finished": " runs finish"}[of.unit]
    half = factor * (of.high - of.low) / 2
    digits = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 2
    effect, low, high = (f"{factor * end:{sign}.{digits}f}" for end in (of.effect, of.low, of.high))
    return f"{effect}{what} ({low} to {high})"


def verdict_record(name: str, claim: Claim, found: ClaimResult | None) -> dict[str, Any]:
    """Return one line of the table of verdicts."""
    verdict, test = verdict_on(claim, found), claim.test
    by_sums = isinstance(test, ArithmeticTest)
    weighed = [] if isinstance(test, ArithmeticTest) else test.verdict_arms()
    trained = [run.tokens for run in found.runs if run.tokens is not None and run.arm in weighed] if found else []
    return {
        "id": name,
        "claim": claim.claim,
        "claimed": claim.effect.text,
        "measured": "" if by_sums else effect_text(verdict),
        "n": verdict.n or None,
        "tokens": " to ".join(f"{n:,}" for n in sorted({min(trained), max(trained)})) if trained else None,
        "scale": scale_text(test, found),
        "verdict": verdict.verdict + (" by arithmetic" if by_sums and found is not None and found.passed else ""),
        "command": found.command if found is not None else f"hpo claims {name}",
        "note": verdict.note,
    }


def scale_text(test: ArmsTest | ArithmeticTest, found: ClaimResult | None) -> str:
    """Return the base of the runs, and how many parameters the arms of the verdict have."""
    if isinstance(test, ArithmeticTest):
        return ""
    sizes = sorted(set(found.parameters.values())) if found is not None else []
    ends = " to ".join(f"{n:,}" for n in dict.fromkeys([*sizes[:1], *sizes[-1:]]))
    return test.base + (f", {ends} parameters" if sizes else "")


def arm_records(name: str, claim: Claim, found: ClaimResult | None) -> list[dict[str, Any]]:
    """Return a line an arm of what was run for a claim: how many runs, their mean and standard deviation."""
    if found is None or isinstance(claim.test, ArithmeticTest):
        return []
    lines = []
    for arm, scores in scores_by_arm(found.runs).items():
        known = [value for value in scores.values() if value is not None]
        lines.append({
            "id": name,
            "arm": arm + (" *" if arm in claim.test.contrast_terms() else ""),
            "tuned": found.chosen.get(arm, "").removeprefix(f"{arm}, "),
            "runs": len(scores),
            "diverged": len(scores) - len(known) or None,
            "metric": claim.test.metric_of(found.chosen.get(arm, arm)),
            "mean": number(statistics.fmean(known)) if known else None,
            "sd": number(statistics.stdev(known)) if len(known) > 1 else None,
        })  # fmt: skip
    return lines


def verdict_records(ledger: Mapping[str, Claim], findings: ClaimResults) -> list[dict[str, Any]]:
    """Return the table of verdicts of these claims."""
    return [verdict_record(name, claim, findings.result_of(name, claim)) for name, claim in ledger.items()]

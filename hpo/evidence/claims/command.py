"""`hpo claims`: select claims of a ledger, test them, and print or write the verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.config.discovery import find_ledger
from hpo.config.validation import nearest
from hpo.console import Format, print_records, say
from hpo.errors import Problem, WorkFailed
from hpo.evidence.claims.ledger import arm_configurations, load_ledger
from hpo.evidence.claims.page import claims_page
from hpo.evidence.claims.results import (
    ClaimResult,
    ClaimResults,
    effect_text,
    load_results,
    save_result,
    verdict_on,
    verdict_records,
)
from hpo.evidence.claims.run import run_claim
from hpo.evidence.claims.runner import TUNING_SEEDS, ClaimSkipped
from hpo.evidence.claims.schema import ArmsTest, Ledger, LedgerClaim
from hpo.launcher.options import LaunchOptions
from hpo.launcher.placement import resolve_workers
from hpo.runs.run_dir import write_file

TABLE_COLUMNS = ("id", "claimed", "measured", "n", "tokens", "scale", "verdict")


@dataclass(frozen=True)
class ClaimsRequest:
    """The options of `hpo claims`.

    names: ids of claims, or names of reports; empty means all claims.
    seeds: pairs of runs of each claim; None means the number in the ledger.
    data: file of the results; None means claims.json in ./docs if that folder exists, else in ./runs.
    write: file for the page of all verdicts.
    list: print the claims and the cost of their runs, and exit.
    verdict_arms_only: run only the arms that enter the verdicts.
    """

    names: Sequence[str]
    seeds: int | None
    ledger: str
    data: Path | None
    write: Path | None
    list: bool
    verdict_arms_only: bool


def run_claims(request: ClaimsRequest, options: LaunchOptions, format: Format) -> int:
    """Test claims, store the results, and print the verdicts; return the exit status.

    The arms that enter the verdicts of all claims run first. The other arms, which test what else could explain an
    effect, run after them.

    Raises:
        Problem: an option is not valid.
        WorkFailed: the runs were interrupted.
    """
    ledger = load_ledger(find_ledger(request.ledger))
    claims = select_claims(ledger, request.names)
    path = request.data or Path("docs" if Path("docs").is_dir() else "runs") / "claims.json"
    results = load_results(path)
    if request.write is not None:
        if request.names:
            raise Problem(f"--write: writes all claims, so IDS must be left out, got {', '.join(request.names)}")
        write_file(request.write, claims_page(ledger, results))
        return 0
    if request.list or options.dry_run:
        listing = [
            listing_record(name, claim, request.seeds, results, request.verdict_arms_only)
            for name, claim in claims.items()
        ]
        print_records(listing, format)
        return 0
    resolve_workers(options)  # checks the options before the first claim runs
    without_result = _test_claims(ledger, claims, request, options, path)
    records = verdict_records(claims, load_results(path))
    print_records(
        [{key: r[key] for key in TABLE_COLUMNS} for r in records] if format is Format.table else records, format
    )
    if without_result:
        say(f"no result: {', '.join(without_result)}")
    return 1 if without_result else 0


def _test_claims(
    ledger: Ledger, claims: Mapping[str, LedgerClaim], request: ClaimsRequest, options: LaunchOptions, path: Path
) -> list[str]:
    """Run the arms of the verdicts, then the other arms unless they are excluded; return the claims without a verdict.

    path: file of the results.
    """
    order = run_order(claims)
    without_result = [name for name in order if not _test_claim(name, ledger, request, options, path)]
    if request.verdict_arms_only:
        return without_result
    for name in order:
        if name not in without_result and _has_other_arms(claims[name]):
            say(f"{name}: the arms that do not enter the verdict")
            _run_and_save(name, ledger, request, options, path, verdict_arms_only=False)
    return without_result


def _test_claim(name: str, ledger: Ledger, request: ClaimsRequest, options: LaunchOptions, path: Path) -> bool:
    """Run the arms that enter the verdict on a claim; return whether there is a verdict.

    Raises:
        WorkFailed: the runs were interrupted.
    """
    claim = ledger.claims[name]
    say(f"{name}: {claim.claim}")
    result = _run_and_save(name, ledger, request, options, path, verdict_arms_only=True)
    if result is None:
        return False
    verdict = verdict_on(claim, result)
    parts = [verdict.verdict, effect_text(verdict), verdict.note]
    say(f"{name}: {'; '.join(part for part in parts if part)}")
    return verdict.verdict != "not run yet"


def _run_and_save(
    name: str, ledger: Ledger, request: ClaimsRequest, options: LaunchOptions, path: Path, verdict_arms_only: bool
) -> ClaimResult | None:
    """Run arms of a claim, or its calculation, and store the result; return None if there is no result.

    Raises:
        WorkFailed: the runs were interrupted.
    """
    claim = ledger.claims[name]
    try:
        result = run_claim(name, claim, request.seeds or default_seeds(claim), options, verdict_arms_only)
    except ClaimSkipped as problem:
        say(f"{name}: skipped: {problem}")
        return None
    except WorkFailed as problem:
        if problem.status >= 128:  # a signal
            raise
        say(f"{name}: failed: {problem}")
        return None
    save_result(path, ledger, name, result)
    return result


def _has_other_arms(claim: LedgerClaim) -> bool:
    """Return whether a claim has arms that do not enter its verdict."""
    return isinstance(claim.test, ArmsTest) and len(claim.test.compared_arms()) > len(claim.test.arms_run_first())


def select_claims(ledger: Ledger, names: Sequence[str]) -> dict[str, LedgerClaim]:
    """Return the claims with these ids or of these reports; all claims if there are no names.

    Raises:
        Problem: a name is neither a claim nor a report.
    """
    reports = sorted({claim.report for claim in ledger.claims.values()})
    if unknown := [name for name in names if name not in (*ledger.claims, *reports)]:
        raise Problem(*(_unknown(name, [*ledger.claims, *reports], reports) for name in unknown))
    return {n: c for n, c in ledger.claims.items() if not names or n in names or c.report in names}


def _unknown(name: str, known: Sequence[str], reports: Sequence[str]) -> str:
    """Return the message for a name that is neither a claim nor a report."""
    suggestion = nearest(name.upper(), known)
    known_reports = f"reports are {', '.join(reports)}; `hpo claims --list` lists all claims"
    return f"IDS: no claim or report {name!r:.60}{suggestion} ({known_reports})"


def run_order(claims: Mapping[str, LedgerClaim]) -> list[str]:
    """Return the claims in the order in which they are tested: calculations, then the largest claimed effects first."""

    def rank(name: str) -> tuple[int, float]:
        effect, test = claims[name].effect, claims[name].test
        if not isinstance(test, ArmsTest):
            return 0, 0.0
        return (1, -abs(effect.value)) if effect.unit == "share" and effect.value else (2, 0.0)

    return sorted(claims, key=rank)


def default_seeds(claim: LedgerClaim) -> int:
    """Return the number of pairs of runs that the ledger requests for a claim."""
    return claim.test.seeds if isinstance(claim.test, ArmsTest) else 0


def listing_record(
    name: str, claim: LedgerClaim, seeds: int | None, results: ClaimResults, verdict_arms_only: bool = False
) -> dict[str, Any]:
    """Return the runs, tokens and hours of one worker that a claim needs.

    The hours are estimated from earlier runs of the same base, None if there are no such runs.
    """
    runs, tokens = claim_cost(claim, seeds or default_seeds(claim), verdict_arms_only)
    seconds = _seconds_per_token(claim, results)
    return {
        "id": name,
        "report": claim.report,
        "claim": claim.claim,
        "claimed": claim.effect.text,
        "done": results.result_of(name, claim) is not None,
        "runs": runs,
        "tokens": tokens,
        "hours": round(tokens * seconds / 3600, 2) if seconds is not None else None,
    }


def claim_cost(claim: LedgerClaim, seeds: int, verdict_arms_only: bool = False) -> tuple[int, int]:
    """Return the number of runs that a claim needs, including those that tune its arms, and their number of tokens.

    verdict_arms_only: count only the arms that enter the verdict.
    """
    if not isinstance(claim.test, ArmsTest):
        return 0, 0
    tokens = {name: c.marks()[-1] * c.update_tokens() for name, c in arm_configurations(claim.test).items()}
    compared = claim.test.compared_arms()
    levels = [compared[name] for name in (claim.test.arms_run_first() if verdict_arms_only else compared)]
    tuning = [arm for arms in levels for arm in arms] * len(TUNING_SEEDS) if claim.test.tuned else []
    runs = tuning + [arms[0] for arms in levels] * seeds
    return len(runs), sum(tokens[arm] for arm in runs)


def _seconds_per_token(claim: LedgerClaim, results: ClaimResults) -> float | None:
    """Return the mean seconds per token of all runs of the claim's base so far, None if there are none."""
    if not isinstance(claim.test, ArmsTest):
        return None
    runs = [run for result in results.claims.values() if result.base == claim.test.base for run in result.runs]
    timed = [(run.seconds, run.tokens) for run in runs if run.seconds and run.tokens]
    return sum(seconds for seconds, _ in timed) / sum(tokens for _, tokens in timed) if timed else None

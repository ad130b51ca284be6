"""hpo claims: which claims are meant, in which order they are tested, and the page that says what was found."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.config.discovery import find_ledger
from hpo.console import Format, rows, say
from hpo.errors import Problem, WorkFailed
from hpo.evidence.claims import results
from hpo.evidence.claims.ledger import arm_configurations, load_ledger
from hpo.evidence.claims.page import claims_page
from hpo.evidence.claims.results import ClaimResult, ClaimResults
from hpo.evidence.claims.run import run_claim
from hpo.evidence.claims.runner import TUNING_SEEDS, ClaimSkipped
from hpo.evidence.claims.schema import ArmsTest, Claim, Ledger
from hpo.launcher.supervisor import LaunchOptions, resolve_workers
from hpo.runs.run_dir import write_file


@dataclass(frozen=True)
class ClaimsRequest:
    """What the command line of `hpo claims` says; names are of claims or reports, none: all.

    verdict_arms_only: run the arms that enter the verdicts, and no others.
    """

    names: Sequence[str]
    seeds: int | None
    ledger: str
    data: Path | None
    write: Path | None
    list: bool
    verdict_arms_only: bool


def run_claims(asked: ClaimsRequest, options: LaunchOptions, format: Format) -> int:
    """Test claims, keep what was found, and print the verdicts; return the exit status.

    The arms that enter verdicts are run first, of all claims; then the others, which say what else may explain them.
    """
    ledger = load_ledger(find_ledger(asked.ledger))
    picked = select_claims(ledger, asked.names)
    path = asked.data or Path("docs" if Path("docs").is_dir() else "runs") / "claims.json"
    held = results.load_results(path)
    if asked.write is not None:
        if asked.names:
            raise Problem(f"--write: the page is of all claims; leave out {', '.join(asked.names)}")
        write_file(asked.write, claims_page(ledger, held))
        return 0
    if asked.list or options.dry_run:
        rows(
            [listing_record(name, claim, asked.seeds, held, asked.verdict_arms_only) for name, claim in picked.items()],
            format,
        )
        return 0
    resolve_workers(options)  # refuses what cannot be, before the first claim
    order = run_order(picked)
    untold = [name for name in order if not _test_claim(name, ledger, asked, options, path)]
    if not asked.verdict_arms_only:
        for name in order:
            if name not in untold and _has_other_arms(ledger.claims[name]):
                say(f"{name}: the arms that do not enter the verdict")
                _run_and_save(name, ledger, asked, options, path, verdict_arms_only=False)
    told = results.verdict_records(picked, results.load_results(path))
    rows([_narrow_record(line) for line in told] if format is Format.table else told, format)
    if untold:
        say(f"without a result: {', '.join(untold)}")
    return 1 if untold else 0


def _test_claim(name: str, ledger: Ledger, asked: ClaimsRequest, options: LaunchOptions, path: Path) -> bool:
    """Run what the verdict on a claim needs; return whether there is one.

    Raises:
        WorkFailed: it was interrupted.
    """
    claim = ledger.claims[name]
    say(f"{name}: {claim.claim}")
    found = _run_and_save(name, ledger, asked, options, path, verdict_arms_only=True)
    if found is None:
        return False
    verdict = results.verdict_on(claim, found)
    told = [verdict.verdict, results.effect_text(verdict), verdict.note]
    say(f"{name}: {'; '.join(part for part in told if part)}")
    return verdict.verdict != "not run yet"


def _run_and_save(
    name: str, ledger: Ledger, asked: ClaimsRequest, options: LaunchOptions, path: Path, verdict_arms_only: bool
) -> ClaimResult | None:
    """Run arms of a claim, or its calculation, and keep what was found; return None where that is nothing."""
    claim = ledger.claims[name]
    try:
        found = run_claim(name, claim, asked.seeds or default_seeds(claim), options, verdict_arms_only)
    except ClaimSkipped as problem:
        say(f"{name}: left out: {problem}")
        return None
    except WorkFailed as problem:
        if problem.status >= 128:
            raise
        say(f"{name}: failed: {problem}")
        return None
    results.save_result(path, ledger, name, found)
    return found


def _has_other_arms(claim: Claim) -> bool:
    return isinstance(claim.test, ArmsTest) and len(claim.test.compared_arms()) > len(claim.test.arms_run_first())


def select_claims(ledger: Ledger, names: Sequence[str]) -> dict[str, Claim]:
    """Return the claims that are named, by themselves or by their report; all where nothing is.

    Raises:
        Problem: a name is neither.
    """
    reports = sorted({claim.report for claim in ledger.claims.values()})
    if unknown := [name for name in names if name not in (*ledger.claims, *reports)]:
        raise Problem(*(_unknown(name, [*ledger.claims, *reports], reports) for name in unknown))
    return {n: c for n, c in ledger.claims.items() if not names or n in names or c.report in names}


def _unknown(name: str, known: Sequence[str], reports: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.upper(), known, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return (
        f"IDS: no claim or report {name!r:.60}{meant} (reports are {', '.join(reports)}; `hpo claims --list` lists all)"
    )


def run_order(picked: Mapping[str, Claim]) -> list[str]:
    """Return the claims in the order in which they are tested: sums first, then the largest effects claimed."""

    def rank(name: str) -> tuple[int, float]:
        effect, test = picked[name].effect, picked[name].test
        if not isinstance(test, ArmsTest):
            return 0, 0.0
        return (1, -abs(effect.value)) if effect.unit == "share" and effect.value else (2, 0.0)

    return sorted(picked, key=rank)


def default_seeds(claim: Claim) -> int:
    """Return the pairs of runs that a claim asks for."""
    return claim.test.seeds if isinstance(claim.test, ArmsTest) else 0


def listing_record(
    name: str, claim: Claim, seeds: int | None, held: ClaimResults, verdict_arms_only: bool = False
) -> dict[str, Any]:
    """Return what a claim needs to be run: runs, tokens, and hours of one worker, where its base was run before."""
    runs, tokens = claim_cost(claim, seeds or default_seeds(claim), verdict_arms_only)
    speed = _seconds_per_token(claim, held)
    return {
        "id": name,
        "report": claim.report,
        "claim": claim.claim,
        "claimed": claim.effect.text,
        "done": held.result_of(name, claim) is not None,
        "runs": runs,
        "tokens": tokens,
        "hours": round(tokens * speed / 3600, 2) if speed is not None else None,
    }


def claim_cost(claim: Claim, seeds: int, verdict_arms_only: bool = False) -> tuple[int, int]:
    """Return the runs of a claim, those that choose its tuned factors among them, and their tokens.

    verdict_arms_only: of the arms that enter the verdict alone.
    """
    if not isinstance(claim.test, ArmsTest):
        return 0, 0
    length = {name: c.marks()[-1] * c.update_tokens() for name, c in arm_configurations(claim.test).items()}
    every = claim.test.compared_arms()
    contestants = [every[name] for name in (claim.test.arms_run_first() if verdict_arms_only else every)]
    tuning = [arm for arms in contestants for arm in arms] * len(TUNING_SEEDS) if claim.test.tuned else []
    runs = tuning + [arms[0] for arms in contestants] * seeds
    return len(runs), sum(length[arm] for arm in runs)


def _seconds_per_token(claim: Claim, held: ClaimResults) -> float | None:
    """Return the time of a token of this base, as runs of claims took it so far."""
    if not isinstance(claim.test, ArmsTest):
        return None
    runs = [run for found in held.claims.values() if found.base == claim.test.base for run in found.runs]
    known = [(run.seconds, run.tokens) for run in runs if run.seconds and run.tokens]
    return sum(seconds for seconds, _ in known) / sum(tokens for _, tokens in known) if known else None


def _narrow_record(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in ("id", "claimed", "measured", "n", "tokens", "scale", "verdict")}

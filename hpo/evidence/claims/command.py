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
from hpo.evidence.claims.ledger import configurations, load_ledger
from hpo.evidence.claims.page import page
from hpo.evidence.claims.results import Finding, Findings
from hpo.evidence.claims.run import prove
from hpo.evidence.claims.runner import TUNING, LeftOut
from hpo.evidence.claims.schema import Arms, Claim, Ledger
from hpo.launcher.supervisor import Options, crew_of
from hpo.runs.run_dir import write_file


@dataclass(frozen=True)
class ClaimsRequest:
    """What the command line of `hpo claims` says; names are of claims or reports, none: all.

    weighed: run the arms that enter the verdicts, and no others.
    """

    names: Sequence[str]
    seeds: int | None
    ledger: str
    data: Path | None
    write: Path | None
    list: bool
    weighed: bool


def claims(asked: ClaimsRequest, options: Options, format: Format) -> int:
    """Test claims, keep what was found, and print the verdicts; return the exit status.

    The arms that enter verdicts are run first, of all claims; then the others, which say what else may explain them.
    """
    ledger = load_ledger(find_ledger(asked.ledger))
    picked = pick(ledger, asked.names)
    path = asked.data or Path("docs" if Path("docs").is_dir() else "runs") / "claims.json"
    held = results.load(path)
    if asked.write is not None:
        if asked.names:
            raise Problem(f"--write: the page is of all claims; leave out {', '.join(asked.names)}")
        write_file(asked.write, page(ledger, held))
        return 0
    if asked.list or options.dry_run:
        rows([listed(name, claim, asked.seeds, held, asked.weighed) for name, claim in picked.items()], format)
        return 0
    crew_of(options)  # refuses what cannot be, before the first claim
    order = by_size(picked)
    untold = [name for name in order if not _tested(name, ledger, asked, options, path)]
    if not asked.weighed:
        for name in order:
            if name not in untold and _others(ledger.claims[name]):
                say(f"{name}: the arms that do not enter the verdict")
                _kept(name, ledger, asked, options, path, weighed=False)
    told = results.rows(picked, results.load(path))
    rows([_narrow(line) for line in told] if format is Format.table else told, format)
    if untold:
        say(f"without a result: {', '.join(untold)}")
    return 1 if untold else 0


def _tested(name: str, ledger: Ledger, asked: ClaimsRequest, options: Options, path: Path) -> bool:
    """Run what the verdict on a claim needs; return whether there is one.

    Raises:
        WorkFailed: it was interrupted.
    """
    claim = ledger.claims[name]
    say(f"{name}: {claim.claim}")
    found = _kept(name, ledger, asked, options, path, weighed=True)
    if found is None:
        return False
    verdict = results.judged(claim, found)
    told = [verdict.verdict, results.measured(verdict), verdict.note]
    say(f"{name}: {'; '.join(part for part in told if part)}")
    return verdict.verdict != "not run yet"


def _kept(
    name: str, ledger: Ledger, asked: ClaimsRequest, options: Options, path: Path, weighed: bool
) -> Finding | None:
    """Run arms of a claim, or its calculation, and keep what was found; return None where that is nothing."""
    claim = ledger.claims[name]
    try:
        found = prove(name, claim, asked.seeds or least(claim), options, weighed)
    except LeftOut as problem:
        say(f"{name}: left out: {problem}")
        return None
    except WorkFailed as problem:
        if problem.status >= 128:
            raise
        say(f"{name}: failed: {problem}")
        return None
    results.keep(path, ledger, name, found)
    return found


def _others(claim: Claim) -> bool:
    return isinstance(claim.test, Arms) and len(claim.test.contestants()) > len(claim.test.run_first())


def pick(ledger: Ledger, names: Sequence[str]) -> dict[str, Claim]:
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


def by_size(picked: Mapping[str, Claim]) -> list[str]:
    """Return the claims in the order in which they are tested: sums first, then the largest effects claimed."""

    def rank(name: str) -> tuple[int, float]:
        effect, test = picked[name].effect, picked[name].test
        if not isinstance(test, Arms):
            return 0, 0.0
        return (1, -abs(effect.value)) if effect.unit == "share" and effect.value else (2, 0.0)

    return sorted(picked, key=rank)


def least(claim: Claim) -> int:
    """Return the pairs of runs that a claim asks for."""
    return claim.test.seeds if isinstance(claim.test, Arms) else 0


def listed(name: str, claim: Claim, seeds: int | None, held: Findings, weighed: bool = False) -> dict[str, Any]:
    """Return what a claim needs to be run: runs, tokens, and hours of one worker, where its base was run before."""
    runs, tokens = cost(claim, seeds or least(claim), weighed)
    speed = _seconds_a_token(claim, held)
    return {
        "id": name,
        "report": claim.report,
        "claim": claim.claim,
        "claimed": claim.effect.text,
        "done": held.of(name, claim) is not None,
        "runs": runs,
        "tokens": tokens,
        "hours": round(tokens * speed / 3600, 2) if speed is not None else None,
    }


def cost(claim: Claim, seeds: int, weighed: bool = False) -> tuple[int, int]:
    """Return the runs of a claim, those that choose its tuned factors among them, and their tokens.

    weighed: of the arms that enter the verdict alone.
    """
    if not isinstance(claim.test, Arms):
        return 0, 0
    length = {name: c.marks()[-1] * c.update_tokens() for name, c in configurations(claim.test).items()}
    every = claim.test.contestants()
    contestants = [every[name] for name in (claim.test.run_first() if weighed else every)]
    tuning = [arm for arms in contestants for arm in arms] * len(TUNING) if claim.test.tuned else []
    runs = tuning + [arms[0] for arms in contestants] * seeds
    return len(runs), sum(length[arm] for arm in runs)


def _seconds_a_token(claim: Claim, held: Findings) -> float | None:
    """Return the time of a token of this base, as runs of claims took it so far."""
    if not isinstance(claim.test, Arms):
        return None
    runs = [run for found in held.claims.values() if found.base == claim.test.base for run in found.runs]
    known = [(run.seconds, run.tokens) for run in runs if run.seconds and run.tokens]
    return sum(seconds for seconds, _ in known) / sum(tokens for _, tokens in known) if known else None


def _narrow(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in ("id", "claimed", "measured", "n", "tokens", "scale", "verdict")}

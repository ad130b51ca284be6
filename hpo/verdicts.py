"""hpo claims: which claims are meant, in which order they are tested, and the page that says what was found."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo import folders, records
from hpo.claims import Arms, Claim, Ledger
from hpo.ledger import configurations, read
from hpo.output import Format, rows, say
from hpo.problems import Problem, WorkFailed
from hpo.proof import TUNING, LeftOut, prove
from hpo.records import Finding, Findings
from hpo.running import Options, crew_of
from hpo.shelf import find_ledger


@dataclass(frozen=True)
class Asked:
    """What the command line of `hpo claims` says; names are of claims or reports, none: all."""

    names: Sequence[str]
    seeds: int | None
    ledger: str
    data: Path | None
    write: Path | None
    list: bool


def claims(asked: Asked, options: Options, format: Format) -> int:
    """Test claims, keep what was found, and print the verdicts; return the exit status."""
    ledger = read(find_ledger(asked.ledger))
    picked = pick(ledger, asked.names)
    path = asked.data or Path("docs" if Path("docs").is_dir() else "runs") / "claims.json"
    held = records.load(path)
    if asked.write is not None:
        if asked.names:
            raise Problem(f"--write: the page is of all claims; leave out {', '.join(asked.names)}")
        folders.write(asked.write, page(ledger, held))
        return 0
    if asked.list or options.dry_run:
        rows([listed(name, claim, asked.seeds, held) for name, claim in picked.items()], format)
        return 0
    crew_of(options)  # refuses what cannot be, before the first claim
    untold = [name for name in by_size(picked) if not _tested(name, ledger, asked, options, path)]
    told = records.rows(picked, records.load(path))
    rows([_narrow(line) for line in told] if format is Format.table else told, format)
    if untold:
        say(f"without a result: {', '.join(untold)}")
    return 1 if untold else 0


def _tested(name: str, ledger: Ledger, asked: Asked, options: Options, path: Path) -> bool:
    """Test one claim and keep what was found; return whether that came to a verdict.

    Raises:
        WorkFailed: it was interrupted.
    """
    claim = ledger.claims[name]
    say(f"{name}: {claim.claim}")
    try:
        found = prove(name, claim, asked.seeds or least(claim), options)
    except LeftOut as problem:
        say(f"{name}: left out: {problem}")
        return False
    except WorkFailed as problem:
        if problem.status >= 128:
            raise
        say(f"{name}: failed: {problem}")
        return False
    records.keep(path, ledger, name, found)
    verdict = records.judged(claim, found)
    told = [verdict.verdict, records.measured(verdict), verdict.note]
    say(f"{name}: {'; '.join(part for part in told if part)}")
    return verdict.verdict != "not run yet"


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


def listed(name: str, claim: Claim, seeds: int | None, held: Findings) -> dict[str, Any]:
    """Return what a claim needs to be run: runs, tokens, and hours of one worker, where its base was run before."""
    runs, tokens = cost(claim, seeds or least(claim))
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


def cost(claim: Claim, seeds: int) -> tuple[int, int]:
    """Return the runs of a claim, those that choose its tuned factors among them, and their tokens."""
    if not isinstance(claim.test, Arms):
        return 0, 0
    length = {name: c.marks()[-1] * c.update_tokens() for name, c in configurations(claim.test).items()}
    contestants = claim.test.contestants()
    tuning = list(length) * len(TUNING) if claim.test.tuned else []
    runs = tuning + [arms[0] for arms in contestants.values()] * seeds
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


# ------------------------------------------------------------------------------------------------------ the page

HEAD = """# What the reports claim, and what runs show

`hpo claims --write docs/claims.md` writes this page from `docs/claims.json`; `hpo claims` runs the tests of
`studies/claims.yaml` and keeps what it finds there. Each line is repeated by its command.

The rule was written before anything was run; the head of `studies/claims.yaml` has it in full. In short: the arms of
a claim are trained on the same seeds, which share initial weights and batches, so that the runs of a seed are a pair.
The effect is the mean over n pairs of the claimed arm less the reference, as a share of the reference unless the
claim is one of a level, and its interval is Student's, of 95 percent. A claim *holds* where the interval lies on the
claimed side of 0 and reaches the claimed size, holds *in part* where all of it falls short of that size, is *refuted*
where it lies on the other side, and is *not shown* where it contains 0. What is no part of a claim, such as a learning
rate, is first chosen for each arm on seeds 100 to 102. The tokens are those of one run.

All of this is on small networks and short runs, as the column `scale` says, and says nothing measured of larger ones.
One interval in twenty misses by chance alone.
"""


def page(ledger: Ledger, held: Findings) -> str:
    """Return the page of all claims of a ledger, as Markdown."""
    told = {line["id"]: line for line in records.rows(ledger.claims, held)}
    totals: dict[str, int] = {}
    for line in told.values():
        totals[line["verdict"]] = totals.get(line["verdict"], 0) + 1
    counted = "\n".join(f"| {verdict} | {n} |" for verdict, n in sorted(totals.items(), key=lambda item: -item[1]))
    parts = [HEAD, f"| verdict | claims |\n|---|---:|\n{counted}\n| all | {len(told)} |\n"]
    for report in dict.fromkeys(claim.report for claim in ledger.claims.values()):
        mine = [told[name] for name, claim in ledger.claims.items() if claim.report == report]
        parts.append(f"## {report}\n\n{_table(mine)}\n")
        parts += [f"{line['id']}: {line['note']}.\n" for line in mine if line["note"]]
    arms = [arm for name, claim in ledger.claims.items() for arm in records.arms(name, claim, held.of(name, claim))]
    parts += [f"{ARMS}\n{_table(arms)}\n"] if arms else []
    return "\n".join([*parts, _machines(held, ledger)])


COLUMNS = ("id", "claim", "claimed", "measured", "n", "tokens", "scale", "verdict", "command")
ARMS = """## All arms

The first arm of a claim is its reference; the one that the claim is about is marked with a star. The others say what
else might explain an effect, and do not enter the verdict.
"""


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return lines as a table, the columns of verdicts in their order."""
    columns = [key for key in COLUMNS if key in lines[0]] if "verdict" in lines[0] else list(lines[0])
    shown = [columns, ["---"] * len(columns), *([_cell(key, line[key]) for key in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in shown)


def _cell(key: str, value: Any) -> str:
    text = "" if value is None else str(value).replace("|", "\\|")
    return f"`{text}`" if key == "command" else text


def _machines(held: Findings, ledger: Ledger) -> str:
    """Return on which versions and commits the runs were made."""
    found: list[Finding] = [f for n, c in ledger.claims.items() if (f := held.of(n, c)) is not None]
    seen = sorted({_machine(machine) for one in found for machine in one.machines})
    return "Runs were made with " + "; ".join(seen or ["nothing yet"]) + ".\n"


def _machine(machine: Mapping[str, Any]) -> str:
    versions = machine.get("versions", {})
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "optuna") if name in versions)
    return f"{packages}, {machine.get('threads')} threads, commit {str(machine.get('git_commit'))[:12]}"

"""The page of all claims of a ledger, written from what was found."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpo.evidence.claims import results
from hpo.evidence.claims.results import ClaimResult, ClaimResults
from hpo.evidence.claims.schema import Ledger

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


def claims_page(ledger: Ledger, held: ClaimResults) -> str:
    """Return the page of all claims of a ledger, as Markdown."""
    told = {line["id"]: line for line in results.verdict_records(ledger.claims, held)}
    totals: dict[str, int] = {}
    for line in told.values():
        totals[line["verdict"]] = totals.get(line["verdict"], 0) + 1
    counted = "\n".join(f"| {verdict} | {n} |" for verdict, n in sorted(totals.items(), key=lambda item: -item[1]))
    parts = [HEAD, f"| verdict | claims |\n|---|---:|\n{counted}\n| all | {len(told)} |\n"]
    for report in dict.fromkeys(claim.report for claim in ledger.claims.values()):
        mine = [told[name] for name, claim in ledger.claims.items() if claim.report == report]
        parts.append(f"## {report}\n\n{_table(mine)}\n")
        parts += [f"{line['id']}: {line['note']}.\n" for line in mine if line["note"]]
    arms = [
        arm
        for name, claim in ledger.claims.items()
        for arm in results.arm_records(name, claim, held.result_of(name, claim))
    ]
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


def _machines(held: ClaimResults, ledger: Ledger) -> str:
    """Return on which versions the runs were made, and at which commits."""
    found: list[ClaimResult] = [f for n, c in ledger.claims.items() if (f := held.result_of(n, c)) is not None]
    commits: dict[str, set[str]] = {}
    for machine in (machine for one in found for machine in one.machines):
        commits.setdefault(_versions(machine), set()).add(str(machine.get("git_commit"))[:12])
    seen = [f"{versions}, at {', '.join(sorted(commits[versions]))}" for versions in sorted(commits)]
    return "Runs were made with " + "; ".join(seen or ["nothing yet"]) + ".\n"


def _versions(machine: Mapping[str, Any]) -> str:
    versions, threads = machine.get("versions", {}), machine.get("threads")
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "optuna") if name in versions)
    return f"{packages}, {threads} thread" + ("s" if threads != 1 else "")

"""The page of all claims of a ledger and their verdicts, written from the stored results."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpo.console import printable
from hpo.evidence.claims.results import ClaimResults, arm_records, verdict_records
from hpo.evidence.claims.schema import Ledger

HEAD = """# Claims of five training reports, tested

`hpo claims` runs the tests in `studies/claims.yaml` and stores their results. `hpo claims --write docs/claims.md`
writes this page from the results in `docs/claims.json`. The last column of each table is the command that repeats the
test. S000 to S004 are the ids of the reports. S000 is about the base configuration `unet`, S001 about `microgpt`, S002
and S004 about `mainrun`, and S003 about `blueberry`.

The rules were written before any run. The head of `studies/claims.yaml` gives them in full. In short:

* All arms (configurations) of a claim are trained with the same seeds. Two runs with the same seed share their initial
  weights and batches, and form a pair.
* The effect is the mean over n pairs of the claimed arm minus the reference, as a share of the reference. If the claim
  is that a level is reached, the effect is the claimed arm's metric itself.
* The interval is Student's 95 % confidence interval of that mean.
* Settings that are not part of a claim, such as the learning rate, are first tuned for each arm on seeds 100 to 102.
* A claim of arithmetic is calculated by one of the project's tests. Its verdict ends with "by arithmetic".
* The column `tokens` is the number of training tokens of one run.

| verdict | meaning |
|---|---|
| holds | the interval is on the claimed side of 0, and contains the claimed size or is beyond it |
| holds in part | the interval is on the claimed side of 0, but all of it is below the claimed size |
| not shown | the interval contains 0 |
| refuted | the interval is on the other side of 0 |

If the claim is that a level is reached, it holds if the upper end of the interval is at most the level, and is refuted
if the lower end is above the level. Otherwise the verdict is "not shown".

All runs are short and use small networks, as the column `scale` shows. The verdicts do not extend to larger networks.
About one in twenty 95 % intervals misses the true effect by chance.
"""


def claims_page(ledger: Ledger, results: ClaimResults) -> str:
    """Return the page of all claims of a ledger, as Markdown."""
    records = {record["id"]: record for record in verdict_records(ledger.claims, results)}
    totals: dict[str, int] = {}
    for record in records.values():
        totals[record["verdict"]] = totals.get(record["verdict"], 0) + 1
    counts = "\n".join(f"| {verdict} | {n} |" for verdict, n in sorted(totals.items(), key=lambda item: -item[1]))
    parts = [HEAD, f"| verdict | claims |\n|---|---:|\n{counts}\n| all | {len(records)} |\n"]
    for report in dict.fromkeys(claim.report for claim in ledger.claims.values()):
        own = [records[name] for name, claim in ledger.claims.items() if claim.report == report]
        parts.append(f"## {report}\n\n{_table(own)}\n")
        parts += [f"{record['id']}: {record['note']}.\n" for record in own if record["note"]]
    arms = [
        arm for name, claim in ledger.claims.items() for arm in arm_records(name, claim, results.result_of(name, claim))
    ]
    parts += [f"{ARMS_HEAD}\n{_table(arms)}\n"] if arms else []
    return "\n".join([*parts, _machines(results, ledger)])


COLUMNS = ("id", "claim", "claimed", "measured", "n", "tokens", "scale", "verdict", "command")
ARMS_HEAD = """## All arms

The first arm of a claim is its reference. A star marks the arms that the claim is about. The other arms test what else
could explain an effect, and do not enter the verdict.
"""


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as a Markdown table; records of verdicts have their columns in the order of COLUMNS."""
    columns = [key for key in COLUMNS if key in records[0]] if "verdict" in records[0] else list(records[0])
    rows = [columns, ["---"] * len(columns), *([_cell(key, record[key]) for key in columns] for record in records)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _cell(key: str, value: Any) -> str:
    text = "" if value is None else printable(str(value), keep="").replace("|", "\\|")
    return f"`{text}`" if key == "command" else text


def _machines(results: ClaimResults, ledger: Ledger) -> str:
    """Return a sentence with the package versions and commits of the runs."""
    commits: dict[str, set[str]] = {}
    for name, claim in ledger.claims.items():
        result = results.result_of(name, claim)
        for machine in result.machines if result is not None else ():
            commits.setdefault(_versions(machine), set()).add(str(machine.get("git_commit"))[:12])
    groups = [f"{versions}, at {', '.join(sorted(commits[versions]))}" for versions in sorted(commits)]
    return "Runs were made with " + "; ".join(groups) + ".\n" if groups else "There are no runs yet.\n"


def _versions(machine: Mapping[str, Any]) -> str:
    versions, threads = machine.get("versions", {}), machine.get("threads")
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "optuna") if name in versions)
    return f"{packages}, {threads} thread" + ("s" if threads != 1 else "")

"""Markdown tables of the results of `make gpu`, for the terminal and for docs/gpu.md."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def rows_of(result: Result, table: str) -> list[dict[str, Any]]:
    """Return the rows of one table, of all parts."""
    return [record["row"] for part in result["parts"] for record in part["records"] if record["table"] == table]


def markdown(result: Result, level: int = 3, without: Sequence[str] = ()) -> str:
    """Return all tables, and the parts that have no complete result. level: of the headings. without: tables."""
    names = dict.fromkeys(record["table"] for part in result["parts"] for record in part["records"])
    shown = [name for name in names if name not in without]
    sections = [f"{'#' * level} {name}\n\n{as_table(rows_of(result, name))}" for name in shown]
    return "\n\n".join([*sections, *_incomplete(result, level)]) + "\n"


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table. Its columns are all keys of the rows that have a value in any row."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if any(_text(row, key) for row in rows)]
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(_text(row, key) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _incomplete(result: Result, level: int) -> Iterator[str]:
    parts = [part for part in result["parts"] if part["status"] != "done"]
    if not parts:
        return
    rows = []
    for part in parts:
        last = str(part.get("log", "")).strip().rpartition("\n")[2][:300]
        rows.append({"part": part["part"], "status": part["status"], "seconds": part.get("seconds"), "error": last})
    yield f"{'#' * level} Parts without a complete result\n\n{as_table(rows)}"


def summary(result: Result) -> str:
    """Return a short table: what is to be shown, and what was measured."""
    done = sum(part["status"] == "done" for part in result["parts"])
    rows = [
        {"what": "parts done", "measured": f"{done} of {len(result['parts'])}", "goal": "all"},
        *_tests(result),
        *_packs(result),
        *_loops(result),
        *_syncs(result),
        *_full_size(result),
    ]
    seconds = result.get("seconds")
    rows.append({"what": "duration", "measured": f"{seconds} s", "goal": "under 480 s"})
    return as_table(rows)


def _tests(result: Result) -> Iterator[dict[str, Any]]:
    for row in rows_of(result, "Tests"):
        counts = ", ".join(f"{row[key]} {key}" for key in ("passed", "failed", "skipped"))
        yield {"what": "tests that need a GPU", "measured": counts, "goal": "0 failed, 0 skipped"}


def _packs(result: Result) -> Iterator[dict[str, Any]]:
    packs = [row for row in rows_of(result, "Packs") if "x one after the other" in row]
    for runs in dict.fromkeys(row["runs"] for row in packs):
        best = max((row for row in packs if row["runs"] == runs), key=lambda row: row["tokens/s"])
        single = max((row["tokens/s"] for row in packs if row["runs"] == runs and row["K"] == 1), default=0)
        ratio = f"x {best['tokens/s'] / single:.1f} at K = {best['K']}" if single else "K = 1 is missing"
        yield {"what": f"packs of {runs} against the fastest K = 1", "measured": ratio, "goal": "x 10"}


def _loops(result: Result) -> Iterator[dict[str, Any]]:
    for row in rows_of(result, "One run against plain loops"):
        if row["loop"] != "Trainer" and row["compiled"] == "yes":
            ratio = f"x {row['Trainer / loop']} ({row['from - to']})"
            yield {"what": f"K = 1, {row['size']}, against {row['loop']}", "measured": ratio, "goal": "x 0.95"}


def _syncs(result: Result) -> Iterator[dict[str, Any]]:
    for row in rows_of(result, "Profile of ten steps"):
        measured = ", ".join(f"{row[key]} {key}" for key in ("kernels", "copies to the device", "syncs"))
        what = f"a step of {row['runs']} at K = {row['K']}, compile {row['compile']}"
        yield {"what": what, "measured": f"{measured}, idle {row['idle'] or 'unknown'}", "goal": "0 syncs in a table"}


def _full_size(result: Result) -> Iterator[dict[str, Any]]:
    for row in rows_of(result, "Full-size networks"):
        memory = f", {row['peak GB']} GB of {row['estimate GB']} estimated" if row["peak GB"] is not None else ""
        measured = f"{row['tokens/s']:,} tokens/s, MFU {row['MFU']}{memory}"
        yield {"what": f"{row['network']}, compile {row['compile']}", "measured": measured, "goal": ""}

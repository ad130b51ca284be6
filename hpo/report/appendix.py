"""The sections at the end of a report: the best trials, failures, workers and budget, where all of it comes from."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpo.analysis.snapshot import Snapshot, token_counts, trial_counts
from hpo.config.yaml import dump_yaml
from hpo.console import clock, plain
from hpo.report import timeline
from hpo.report.html import code_block, definition_table, heading, html_table, paragraph
from hpo.report.sections import captioned, digits
from hpo.report.verdict import Related
from hpo.storage.attributes import END_REASON, ERROR, FIXED_VALUES, MACHINE
from hpo.storage.trials import State, Trial
from hpo.study.spec import as_file
from model.section import flatten

ACROSS = 6  # parameters in one table
LISTED = 15  # trials in the page's table; the CSV has all


def workers_section(snapshot: Snapshot) -> Iterator[str]:
    """Yield who worked when, and what all of it cost."""
    yield heading("Workers and budget")
    if found := timeline.timeline_figure(snapshot):
        caption = (
            "A bar is a trial, in the row of the worker that ended it. Gaps are waiting: for the first import, the "
        )
        caption += "storage, or a trial to run. Clocks are those of the workers' machines."
        yield captioned(found, "timeline", caption)
    yield html_table(timeline.worker_records(snapshot))
    told = "share of its time: from the worker's first trial to the end of the study, pauses included."
    yield paragraph(told, "small")
    budget = {key: value for key, value in snapshot.budget.items() if value is not None}
    n, spent = trial_counts(snapshot), token_counts(snapshot)
    facts: dict[str, Any] = {"budget": ", ".join(f"{key}: {_word(value)}" for key, value in budget.items())}
    facts["trials"] = f"{len(snapshot.own)} begun, {n['waiting']} waiting"
    if spent["trained"] is not None:
        facts["tokens"] = f"{spent['trained']:,} trained, {spent['saved_by_pruning']:,} saved by pruning"
    else:
        facts["rungs"] = f"{sum(t.last_step or 0 for t in snapshot.own):,} trained"
    facts["training"] = (
        clock(sum(t.duration.total_seconds() for t in timeline.finished_trials(snapshot) if t.duration)) + " in all"
    )
    facts["from first to last trial"] = clock(timeline.duration_s(snapshot))
    yield definition_table(facts)


def _word(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def trials_section(snapshot: Snapshot) -> Iterator[str]:
    """Yield the best trials, and why others failed."""
    best = sorted(snapshot.feasible, key=lambda t: t.values[0])[:LISTED]
    if best and not snapshot.spec.get("arms"):
        yield heading("Best trials")
        d = digits(snapshot)
        paths = list(dict.fromkeys(path for t in best for path in t.params))
        for i in range(0, max(1, len(paths)), ACROSS):  # more columns do not fit on a page
            yield html_table([_best(snapshot, t, d, paths[i : i + ACROSS]) for t in best])
        yield paragraph(
            f"The first {len(best)} of {len(snapshot.feasible)}; `hpo report --csv` writes all trials and curves.",
            "small",
        )
    failed = [t for t in snapshot.own if t.state == State.FAIL]
    if failed:
        yield heading("Failures")
        yield html_table(
            [{"trial": t.number, "how": t.user_attrs.get(END_REASON, "failed"), "why": _why(t)} for t in failed[:10]]
        )
        if len(failed) > 10:
            yield paragraph(f"The first 10 of {len(failed)}.", "small")


def _best(snapshot: Snapshot, trial: Trial, digits: int, paths: Sequence[str]) -> dict[str, Any]:
    took = trial.duration.total_seconds() if trial.duration else None
    told = {"trial": trial.number, "kind": snapshot.kind(trial), snapshot.objective: f"{trial.values[0]:.{digits}f}"}
    told["seconds"] = None if took is None else f"{took:.1f}"
    return told | {f"params.{k}" if k in told else k: v for k, v in trial.params.items() if k in paths}


def _why(trial: Trial) -> str:
    said = str(trial.user_attrs.get(ERROR) or "").strip().splitlines()
    return said[-1][:300] if said else "–"


def origin_section(snapshot: Snapshot, related: Sequence[Related]) -> Iterator[str]:
    """Yield where the results come from, and what to type to get them again."""
    yield heading("Where this comes from")
    facts: dict[str, Any] = {"study": snapshot.name, "train": snapshot.spec["train"], "data (hash)": snapshot.data_hash}
    facts["seed of the sampler"] = snapshot.spec["seed"]
    facts["seeds of the runs"] = ", ".join(map(str, _seeds(snapshot))) or None
    machines = _machines(snapshot)
    facts |= machines[0] if machines else {}
    if len(machines) > 1:
        facts["note"] = f"trials ran under {len(machines)} different versions or settings; these are those of the most"
    yield definition_table(facts)
    yield paragraph("Commands that repeat it:")
    commands = _commands(snapshot, related)
    yield code_block("\n".join(commands))
    file = commands[0].endswith(".yaml")
    told = "The file is at the end of this page. " if file else ""
    told += "Equal versions, seeds "
    yield paragraph(told + "and threads give equal losses on a CPU. With several workers the order of trials, and so "
                      "what the sampler knew, may differ.", "small")  # fmt: skip
    best = snapshot.best()
    if best is not None and not snapshot.spec.get("arms"):
        yield paragraph(f"Configuration of the best trial, {best.number}, where it differs from the base:")
        fixed: Mapping[str, Any] = best.user_attrs.get(FIXED_VALUES) or best.params
        base = flatten(snapshot.spec["base"])
        changed = [{"field": k, "base": base.get(k), "best": v} for k, v in fixed.items() if base.get(k) != v]
        yield html_table(changed) or paragraph("It is the base.")
    if file:
        yield heading("The study file") + code_block(dump_yaml(plain(as_file(snapshot.spec, snapshot.budget))), "long")


def _seeds(snapshot: Snapshot) -> list[int]:
    if snapshot.spec.get("arms"):
        return list(snapshot.spec["seeds"])
    base = flatten(snapshot.spec["base"])
    first = base.get("run.seed", base.get("seed"))
    repeats = [t.user_attrs.get(FIXED_VALUES) or {} for t in snapshot.own if snapshot.kind(t) == "seed"]
    found = {v for values in repeats for k, v in values.items() if k.rpartition(".")[2] == "seed"}
    return sorted({*found, *([first] if isinstance(first, int) else [])})


def _machines(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return versions, commit and threads that trials ran under, those of the most trials first."""
    often: dict[str, int] = {}
    known: dict[str, dict[str, Any]] = {}
    for trial in snapshot.own:
        held = {k: v for k, v in (trial.user_attrs.get(MACHINE) or {}).items() if k != "pack"}
        if held:
            known[repr(held)] = held
            often[repr(held)] = often.get(repr(held), 0) + 1
    return [_flat(known[key]) for key in sorted(often, key=lambda key: -often[key])]


def _flat(held: Mapping[str, Any]) -> dict[str, Any]:
    versions = ", ".join(f"{name} {found}" for name, found in (held.get("versions") or {}).items())
    rest = {k.replace("_", " "): v for k, v in held.items() if k != "versions" and not isinstance(v, dict)}
    return {"versions": versions, **rest}


def _commands(snapshot: Snapshot, related: Sequence[Related]) -> list[str]:
    about = snapshot.spec.get("about") or {}
    workers = max(1, len(timeline.worker_times(snapshot)))
    made = next(((key, source) for key, source in about.items() if key in ("confirms", "ablates")), None)
    found = [_compared(snapshot, made[1])] if made else [f"hpo launch --workers {workers} --study {snapshot.name}.yaml"]
    found += [_compared(one.snapshot, snapshot.name) for one in related]
    best = snapshot.best()
    if best is not None and not snapshot.spec.get("arms"):
        found += [f"hpo export --study {snapshot.name} --trial {best.number} -o best.yaml", "hpo train best.yaml"]
    return [*found, f"hpo report --study {snapshot.name}"]


def _compared(snapshot: Snapshot, source: str) -> str:
    """Return the command that makes the same comparison of a study again."""
    about, seeds = snapshot.spec["about"], ["--seeds", str(len(snapshot.spec["seeds"]))]
    length = flatten(snapshot.spec["base"]).get("run.tokens")
    seeds += ["--tokens", str(length)] if length is not None else []
    if "confirms" in about:
        top = ["--top", str(len(snapshot.spec["arms"]) - 1), "--test", about["test"]]
        return shlex.join(["hpo", "confirm", "--study", source, *top, *seeds, "--as", snapshot.name])
    changes = ["--design", about["design"], "--from", about["from"], "--to", about["to"]]
    changes += [word for group in about["groups"] for word in ("--factor", group)]
    changes += ["--order", ",".join(about["order"])] if about["order"] else []
    return shlex.join(["hpo", "ablate", "--study", source, *changes, *seeds, "--as", snapshot.name])

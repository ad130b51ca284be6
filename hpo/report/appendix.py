"""The last sections of a report: best trials, failed trials, workers and budget, and how to reproduce the results."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpo.analysis.progress import token_counts, tokens_text, trial_counts
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.summary import objective_column, objective_decimals
from hpo.config.yaml import dump_yaml
from hpo.console import command_line, fixed, format_duration, json_value
from hpo.errors import error_summary
from hpo.report import timeline
from hpo.report.html import code_block, definition_table, heading, html_table, paragraph
from hpo.report.sections import figure_html
from hpo.report.verdict import RelatedStudy
from hpo.storage.attributes import END_REASON, ERROR, FIXED_VALUES, MACHINE
from hpo.storage.trials import State, Trial
from hpo.study.sequential import KEY
from hpo.study.stored import study_file_tree
from model.section import flatten

MAX_COLUMNS = 6  # hyperparameters in one table, so that the table fits on a page
MAX_TRIALS = 15  # rows of the table of best trials; the CSV file has all trials
MAX_FAILED = 10  # rows of the table of failed trials
MAX_ERROR = 300  # characters of an error message


def trials_section(snapshot: Snapshot) -> Iterator[str]:
    """Yield the tables of the best trials and of the failed trials."""
    best = sorted(snapshot.feasible, key=snapshot.loss)[:MAX_TRIALS]
    if best and not snapshot.spec.get("arms"):
        yield heading("Best trials")
        paths = list(dict.fromkeys(path for t in best for path in t.params))
        for i in range(0, max(1, len(paths)), MAX_COLUMNS):
            yield html_table([_trial_record(snapshot, t, paths[i : i + MAX_COLUMNS]) for t in best])
        n = f"The best {len(best)} of {len(snapshot.feasible)} complete trials. "
        yield paragraph(f"{n}`hpo report --csv` writes all trials and curves.", "small")
    failed = [t for t in snapshot.own if t.state == State.FAIL]
    if failed:
        yield heading("Failed trials")
        yield html_table(
            [
                {"trial": t.number, "reason": t.user_attrs.get(END_REASON, "failed"), "error": _error_text(t)}
                for t in failed[:MAX_FAILED]
            ]
        )
        if len(failed) > MAX_FAILED:
            yield paragraph(f"The first {MAX_FAILED} of {len(failed)} failed trials.", "small")


def _trial_record(snapshot: Snapshot, trial: Trial, paths: Sequence[str]) -> dict[str, Any]:
    value = fixed(trial.values[0], objective_decimals(snapshot))
    record: dict[str, Any] = {"trial": trial.number, "kind": snapshot.kind(trial), objective_column(snapshot): value}
    record["seconds"] = f"{trial.duration.total_seconds():.1f}" if trial.duration else None
    return record | {f"params.{k}" if k in record else k: v for k, v in trial.params.items() if k in paths}


def _error_text(trial: Trial) -> str:
    """Return the type and the first line of the error of a trial."""
    return error_summary(str(trial.user_attrs.get(ERROR) or ""))[:MAX_ERROR] or "–"


def workers_section(snapshot: Snapshot) -> Iterator[str]:
    """Yield the timeline of the workers, the share of time in which each trained, and the budget used."""
    yield heading("Workers and budget")
    if figure := timeline.timeline_figure(snapshot):
        caption = "Each bar is a trial, in the row of the worker that ended it. In a gap, the worker imports packages, "
        caption += "waits for the storage or waits for a trial. Times are from the clocks of the workers' machines."
        yield figure_html(figure, "timeline", caption)
    yield html_table(timeline.worker_records(snapshot))
    note = "training share: of the time from the worker's first trial to the end of the study, pauses included."
    yield paragraph(note, "small")
    yield definition_table(_budget_facts(snapshot))


def _budget_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return the budget of a study and what it used."""
    budget = {key: value for key, value in snapshot.budget.items() if value is not None}
    limits = (f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}" for key, value in budget.items())
    facts: dict[str, Any] = {"budget": ", ".join(limits)}
    facts["trials"] = f"{len(snapshot.own)} started, {trial_counts(snapshot)['waiting']} waiting"
    tokens = token_counts(snapshot)
    if tokens["trained"] is not None:
        facts["tokens"] = tokens_text(snapshot)
    else:
        facts["rungs"] = f"{sum(t.last_step or 0 for t in snapshot.own):,} trained"
    seconds = sum(t.duration.total_seconds() for t in timeline.finished_trials(snapshot) if t.duration)
    facts["training time of all trials"] = format_duration(seconds)
    facts["from first to last trial"] = format_duration(timeline.duration_s(snapshot))
    return facts


def reproduce_section(snapshot: Snapshot, related: Sequence[RelatedStudy]) -> Iterator[str]:
    """Yield versions and seeds, the commands that reproduce the results, and the study file.

    related: the studies that confirm or ablate this one.
    """
    yield heading("Reproduce these results")
    yield definition_table(_provenance_facts(snapshot))
    commands = _commands(snapshot, related)
    yield paragraph("Commands:", "lead-in") + code_block("\n".join(commands))
    from_file = commands[0].endswith(".yaml")
    note = "The study file is at the end of this page. " if from_file else ""
    note += "On a CPU, equal versions, seeds and threads give equal losses. With several workers, the order of the "
    note += "trials may differ, and so may the values that the sampler suggests."
    yield paragraph(note, "small")
    best = snapshot.best()
    if best is not None and not snapshot.spec.get("arms"):
        yield paragraph(f"Fields of the best trial, {best.number}, that differ from the base configuration:", "lead-in")
        values: Mapping[str, Any] = best.user_attrs.get(FIXED_VALUES) or best.params
        base = flatten(snapshot.spec["base"])
        changed = [{"field": k, "base": base.get(k), "best": v} for k, v in values.items() if base.get(k) != v]
        yield html_table(changed) or paragraph("None: the best trial is the base configuration.")
    if from_file:
        yield heading("Study file") + code_block(
            dump_yaml(json_value(study_file_tree(snapshot.spec, snapshot.budget))), "long"
        )


def _provenance_facts(snapshot: Snapshot) -> dict[str, Any]:
    facts: dict[str, Any] = {"study": snapshot.name, "train": snapshot.spec["train"], "data hash": snapshot.data_hash}
    facts["seed of the sampler"] = snapshot.spec["seed"]
    facts["seeds of the runs"] = ", ".join(map(str, _run_seeds(snapshot))) or None
    facts |= snapshot.arithmetic or {}
    environments = _environments(snapshot)
    facts |= environments[0] if environments else {}
    if len(environments) > 1:
        n = len(environments)
        facts["note"] = f"trials ran in {n} different environments; the table shows the environment of most trials"
    return facts


def _run_seeds(snapshot: Snapshot) -> list[int]:
    """Return the seeds of the arms, or of the first baseline and its repeats."""
    if snapshot.spec.get("arms"):
        return list(snapshot.spec["seeds"])
    baseline = snapshot.baseline()
    values = flatten(snapshot.spec["base"]) | (baseline.user_attrs.get(FIXED_VALUES) or {} if baseline else {})
    first = values.get("run.seed", values.get("seed"))
    repeats = [t.user_attrs.get(FIXED_VALUES) or {} for t in snapshot.own if snapshot.kind(t) == "seed"]
    seeds = {v for values in repeats for k, v in values.items() if k.rpartition(".")[2] == "seed"}
    return sorted({*seeds, *([first] if isinstance(first, int) else [])})


def _environments(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the different versions, commits and thread counts of the trials, those of the most trials first."""
    n: dict[str, int] = {}
    environments: dict[str, dict[str, Any]] = {}
    for trial in snapshot.own:
        environment = {k: v for k, v in (trial.user_attrs.get(MACHINE) or {}).items() if k != "pack"}
        if environment:
            key = repr(environment)
            environments[key] = environment
            n[key] = n.get(key, 0) + 1
    return [_environment_facts(environments[key]) for key in sorted(n, key=lambda key: -n[key])]


def _environment_facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    versions = ", ".join(f"{name} {version}" for name, version in (environment.get("versions") or {}).items())
    rest = {k.replace("_", " "): v for k, v in environment.items() if k != "versions" and not isinstance(v, dict)}
    return {"versions": versions, **rest}


def _commands(snapshot: Snapshot, related: Sequence[RelatedStudy]) -> list[str]:
    """Return the commands that make this study, the related studies, the exported best trial and this report."""
    about = snapshot.spec.get("about") or {}
    workers = max(1, len(timeline.worker_times(snapshot)))
    source = next((source for key, source in about.items() if key in ("confirms", "ablates")), None)
    launch = command_line("hpo", "launch", "--workers", workers, "--study", f"{snapshot.name}.yaml")
    commands = [launch if source is None else _comparison_command(snapshot, source)]
    commands += [_comparison_command(study.snapshot, snapshot.name) for study in related]
    best = snapshot.best()
    if best is not None and not snapshot.spec.get("arms"):
        export = command_line("hpo", "export", "--study", snapshot.name, "--trial", best.number, "-o", "best.yaml")
        commands += [export, "hpo train best.yaml"]
    return [*commands, command_line("hpo", "report", "--study", snapshot.name)]


def _comparison_command(snapshot: Snapshot, source: str) -> str:
    """Return the command that makes this confirmation or ablation of study `source`."""
    about, seeds = snapshot.spec["about"], ["--seeds", str(len(snapshot.spec["seeds"]))]
    length = flatten(snapshot.spec["base"]).get("run.tokens")
    seeds += ["--tokens", str(length)] if length is not None else []
    if "confirms" in about:
        top = ["--top", str(len(snapshot.spec["arms"]) - 1), "--test", about["test"]]
        looks = ["--sequential"] if KEY in about else []
        return command_line("hpo", "confirm", "--study", source, *top, *seeds, *looks, "--as", snapshot.name)
    design = ["--design", about["design"], "--from", about["from"], "--to", about["to"]]
    design += [option for group in about["groups"] for option in ("--factor", group)]
    design += ["--order", ",".join(about["order"])] if about["order"] else []
    return command_line("hpo", "ablate", "--study", source, *design, *seeds, "--as", snapshot.name)

"""`hpo launch`: run a study to its end, print the best trial and the next commands."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpo.analysis.export import changed_fields, export_text
from hpo.analysis.front import front_lines, objectives_of
from hpo.analysis.improvements import improvement_lines
from hpo.analysis.probes import probe_lines
from hpo.analysis.progress import has_ended, token_counts, trial_counts
from hpo.analysis.snapshot import Snapshot, best_trial, read_snapshot
from hpo.analysis.summary import best_summary, goal_lines
from hpo.analysis.warnings import study_warnings
from hpo.config.discovery import find_study
from hpo.console import Format, command_line, format_duration, format_value, print_records, say, show
from hpo.errors import NothingFeasible, Problem, StorageError
from hpo.evidence.comparison import conclude_comparison, confirmation_name
from hpo.evidence.preferred import origin_of_unconfirmed
from hpo.launcher.options import LaunchOptions, placement_words, storage_option
from hpo.launcher.supervisor import OnFinish, run_study
from hpo.runs.run_dir import write_file
from hpo.storage.attributes import BUDGET, LADDER_OF, SPEC
from hpo.storage.engine import open_readonly
from hpo.storage.studies import study_attrs, study_ids
from hpo.study.load import load_study
from hpo.study.names import check_name, name_problem
from hpo.study.places import at_places
from hpo.study.spec import SEED_FIELDS, Study, seed_path
from hpo.study.stored import study_from_spec
from hpo.transfer.carry import base_notes
from model.section import flatten


def launch_study(options: LaunchOptions) -> int:
    """Run the study that the options name to the end of its budget and print its result; return the exit status."""
    return launch(options, _requested_study(options))


def _requested_study(options: LaunchOptions) -> Study:
    """Return the study of a file, or a study that has no file here but is in the storage, such as one of `hpo fork`."""
    stored = None if _has_file(options.study) else stored_study(options)
    return stored or load_study(options.study, options.overrides, options.budget, options.seed)


def _has_file(study: str) -> bool:
    with suppress(Problem):
        find_study(study)
        return True
    return False


def launch(options: LaunchOptions, study: Study, on_finish: OnFinish | None = None) -> int:
    """Run a study to the end of its budget, and confirm its best trial if requested; return the exit status.

    on_finish: receives the result of the study and of its confirmation; None: the result is printed.

    Raises:
        Problem: an option or the study is not valid.
    """
    if name_problem(study.name) and SPEC not in _stored_attrs(options.storage, study.name):
        check_name(study.name, study.source)  # a study of an earlier version may have another name
    if study.file.arms is not None and options.budget.get("trials") not in (None, study.file.budget.trials):
        raise Problem(f"--trials: must be omitted, because {study.name} has arms, and their runs are the budget")
    if options.confirm:
        _check_confirmable(study)
    for note in base_notes(study):
        say(f"note: {note}")
    status = run_study(options, study, on_finish or _conclusion(study))
    return status if status or not options.confirm or options.dry_run else _confirm_best(options, study.name, on_finish)


def _conclusion(study: Study) -> OnFinish:
    """Return what prints the result of a study."""
    if study.file.arms is not None:
        return conclude_arms
    if LADDER_OF in study.file.about:
        from hpo.commands.transfer import conclude_ladder  # imports scipy

        return conclude_ladder
    return conclude_search


def _check_confirmable(study: Study) -> None:
    """Check before a search that `hpo confirm` can compare its best trial with the baseline.

    Raises:
        Problem: it cannot.
    """
    if study.file.arms is not None:
        raise Problem(f"--confirm: must be omitted, because {study.name} has arms, which are already compared")
    if seed_path(study.base) is None:
        what = "command of" if study.file.command is not None else "config of"
        field = "{seed}" if study.file.command is not None else "field run.seed or seed"
        raise Problem(
            f"--confirm: must be omitted, because the {what} {study.name} has no {field}, in which pairs of runs differ"
        )
    if study.file.command is not None and not study.file.baseline:
        raise Problem(f"--confirm: must be used with baseline, which {study.source} does not have")


def _confirm_best(options: LaunchOptions, name: str, on_finish: OnFinish | None) -> int:
    """Continue the confirmation of a search, or start a sequential one of its best trial; return the exit status."""
    with open_readonly(options.storage) as store:
        snapshot = read_snapshot(store, name)
        is_new = confirmation_name(snapshot) not in study_ids(store)
    if not has_ended(snapshot):
        say(f"{name} has not ended, so its best trial is not confirmed; the next launch continues")
        return 0
    if is_new and snapshot.kind(best_trial(snapshot)) == "baseline":
        say("no trial is better than the baseline, so there is nothing to confirm")
        return 0
    from hpo.evidence.confirm import ConfirmRequest, conclude_confirmation, run_confirmation  # imports scipy

    request = ConfirmRequest(name, None, None, None, None, None, sequential=is_new)
    again = replace(options, budget={}, overrides=(), seed=None, confirm=False)
    return run_confirmation(request, again, on_finish or conclude_confirmation)


def stored_study(options: LaunchOptions) -> Study | None:
    """Return the study of this name in the storage, with the requested budget and places; None if there is none.

    Raises:
        Problem: the options change the definition of the study, or the code that it names is not permitted.
    """
    attrs = _stored_attrs(options.storage, options.study)
    if SPEC not in attrs:
        return None
    if options.seed is not None:
        raise Problem(f"--seed: must be omitted, because study {options.study} exists and its definition cannot change")
    budget = {key: value for key, value in options.budget.items() if value is not None}
    spec = {**attrs[SPEC], "budget": {**(attrs.get(BUDGET) or attrs[SPEC]["budget"]), **budget}}
    return at_places(study_from_spec(spec, options.study), options.overrides)


def _stored_attrs(storage: str, name: str) -> dict[str, Any]:
    """Return the attributes of a study in the storage, {} if there is none."""
    try:
        with open_readonly(storage) as store:
            study_id = study_ids(store).get(name)
            return {} if study_id is None else study_attrs(store, study_id, name)
    except StorageError:
        return {}


def conclude_search(snapshot: Snapshot, folder: Path, options: LaunchOptions, seconds: float) -> int:
    """Print the result of a study, save its best configuration, and print the next commands."""
    n, spent = trial_counts(snapshot), token_counts(snapshot)
    ended = n["complete"] + n["pruned"] + n["failed"]
    savings = ""
    if spent["trained"] and spent["saved_by_pruning"]:
        probed = spent.get("probes") or 0
        share = (spent["saved_by_pruning"] - probed) / (spent["trained"] - probed + spent["saved_by_pruning"])
        savings = f"; pruning saved {share:.0%} of the tokens" + (", net of probes" if probed else "")
    say(
        f"{snapshot.name}: {ended} trials after {format_duration(seconds)}: {n['complete']} complete, "
        f"{n['pruned']} pruned, {n['failed']} failed{savings}"
    )
    show("\n".join(result_lines(snapshot, save_best(snapshot, folder), options)))
    return 0


def save_best(snapshot: Snapshot, folder: Path) -> Path:
    """Write the configuration of the best trial into the folder of a study; return the path of the file.

    Raises:
        NothingFeasible: no trial is complete.
    """
    best = snapshot.best()
    if best is None:
        raise NothingFeasible(f"study {snapshot.name}: no trial is complete; `hpo trials` and `hpo show N` say why")
    path = folder / "best.yaml"
    write_file(path, export_text(snapshot, best, origin_of_unconfirmed(snapshot, best)))
    return path


def conclude_arms(snapshot: Snapshot, folder: Path, options: LaunchOptions, seconds: float) -> int:
    """Print how the arms of a study compare with the first arm, as the command that created the study does."""
    from hpo.evidence import ablate, confirm, verify  # these import scipy, which takes longer than a short search
    from hpo.evidence.paired import compare_arms, comparison_record

    about = snapshot.spec["about"]
    if "confirms" in about:
        return confirm.conclude_confirmation(snapshot, folder, options, seconds)
    if verify.VERIFIES in about:
        return verify.conclude_verification(snapshot, folder, options, seconds)
    if "ablates" in about:
        return ablate.conclude_ablation(snapshot, folder, options, seconds)

    def print_comparison() -> bool:
        comparisons = compare_arms(snapshot)
        print_records([comparison_record(row) for row in comparisons], Format.table)
        for note in study_warnings(snapshot):
            say(f"note: {note}")
        return any(row.difference for row in comparisons) or (len(comparisons) == 1 and comparisons[0].n > 0)

    return conclude_comparison(snapshot, seconds, print_comparison)


def result_lines(snapshot: Snapshot, path: Path, options: LaunchOptions) -> list[str]:
    """Return lines with the best trial, its differences from the baseline, and the next commands."""
    best = best_trial(snapshot)
    lines = [
        best_summary(snapshot),
        *probe_lines(snapshot),
        *goal_lines(snapshot),
        *front_lines(snapshot),
        *improvement_lines(snapshot),
        "",
    ]
    changed = changed_fields(snapshot, best)
    width = max((len(field) for field, _, _ in changed), default=0)
    lines += [
        f"  {field:{width}}  {format_value(before):>8} -> {format_value(after)}" for field, before, after in changed
    ]
    lines += ["" if changed else "  the best trial is the baseline: no other trial is better"]
    if notes := study_warnings(snapshot):
        lines += [*(f"note: {note}" for note in notes), ""]
    return [*lines, f"complete configuration: {path}", "next:", *_next_commands(snapshot, options, bool(changed))]


def _next_commands(snapshot: Snapshot, options: LaunchOptions, is_better: bool) -> list[str]:
    """Return the commands that follow a search, with its storage and the places of its workers.

    is_better: whether the best trial is another than the baseline, so that there is something to confirm.
    """
    storage = storage_option(options)
    by = ["--by", snapshot.objective] if len(objectives_of(snapshot)) > 1 else []
    # On GPUs without --workers, --per-gpu gives their number.
    number = ["--workers", str(max(1, options.workers))] if options.workers or not options.gpus else []
    workers = command_line(*number, *placement_words(options))
    confirm = f"  {command_line('hpo', 'confirm', '--study', snapshot.name)}{storage} {workers}"
    base = flatten(snapshot.spec["base"])
    can_confirm = is_better and not options.confirm and any(field in base for field in SEED_FIELDS)
    return [
        *([confirm] if can_confirm else []),
        f"  {command_line('hpo', 'export', '--study', snapshot.name, *by)}{storage} -o best.yaml",
        "  hpo train best.yaml",
        f"  hpo dashboard{storage}",
    ]

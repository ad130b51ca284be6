"""hpo launch: a study by its name or its file, run to its end, what it found, and what to type next."""

from contextlib import suppress
from pathlib import Path

from hpo.analysis.export import changes, text
from hpo.analysis.snapshot import Snapshot, best_trial, counts, tokens
from hpo.analysis.summary import aims, standing
from hpo.analysis.warnings import caveats
from hpo.config.discovery import find
from hpo.console import Format, as_text, clock, rows, say
from hpo.errors import NothingFeasible, Problem, StorageError
from hpo.evidence.comparison import conclude_comparison
from hpo.evidence.preferred import UNCONFIRMED
from hpo.launcher.supervisor import Options, run, where
from hpo.runs.run_dir import write_file
from hpo.storage.attributes import BUDGET, SPEC
from hpo.storage.engine import open_readonly
from hpo.storage.trials import study_attrs, study_ids
from hpo.study.load import load_study
from hpo.study.spec import Study, from_spec


def launch(options: Options) -> int:
    """Run a study to the end of its budget; return the exit status."""
    study = held(options) or load_study(options.study, options.overrides, options.budget, options.seed)
    if study.file.arms is not None and options.budget.get("trials") not in (None, study.file.budget.trials):
        raise Problem(f"--trials: must be left out, since {study.name} has arms: their runs are the budget")
    return run(options, study, conclude_arms if study.file.arms is not None else conclude_search)


def held(options: Options) -> Study | None:
    """Return a study that has no file here but lies in the storage, such as one that `hpo fork` made; else None."""
    with suppress(Problem):
        find(options.study)
        return None
    try:
        with open_readonly(options.storage) as store:
            study_id = study_ids(store).get(options.study)
            attrs = {} if study_id is None else study_attrs(store, study_id)
    except StorageError:
        return None
    if SPEC not in attrs:
        return None
    if options.overrides or options.seed is not None:
        raise Problem(f"--set, --seed: must be left out, since {options.study} is begun and keeps its questions")
    asked = {key: value for key, value in options.budget.items() if value is not None}
    return from_spec({**attrs[SPEC], "budget": {**(attrs.get(BUDGET) or attrs[SPEC]["budget"]), **asked}})


def conclude_search(snapshot: Snapshot, folder: Path, options: Options, seconds: float) -> int:
    """Say what a study found, keep its best configuration, and say what to type next."""
    n, spent = counts(snapshot), tokens(snapshot)
    ended = n["complete"] + n["pruned"] + n["failed"]
    spared = ""
    if spent["trained"] and spent["saved_by_pruning"]:
        share = spent["saved_by_pruning"] / (spent["trained"] + spent["saved_by_pruning"])
        spared = f"; pruning saved {share:.0%} of the tokens"
    say(
        f"{snapshot.name}: {ended} trials after {clock(seconds)}: {n['complete']} complete, {n['pruned']} pruned, "
        f"{n['failed']} failed{spared}"
    )
    best = snapshot.best()
    if best is None:
        raise NothingFeasible(f"study {snapshot.name}: no trial was completed; `hpo trials` and `hpo show N` say why")
    path = folder / "best.yaml"
    write_file(path, text(snapshot, best_trial(snapshot), UNCONFIRMED))
    print("\n".join(best_lines(snapshot, path, options)))
    return 0


def conclude_arms(snapshot: Snapshot, folder: Path, options: Options, seconds: float) -> int:
    """Say how the arms of a study compare with the first of them, as the command that made it would."""
    from hpo.evidence import ablate, confirm  # scipy, which takes longer to load than a short search
    from hpo.evidence.paired import compare_arms, comparison_record

    about = snapshot.spec["about"]
    if "confirms" in about:
        return confirm.conclude_confirmation(snapshot, folder, options, seconds)
    if "ablates" in about:
        return ablate.conclude_ablation(snapshot, folder, options, seconds)

    def tell() -> bool:
        found = compare_arms(snapshot)
        rows([comparison_record(row) for row in found], Format.table)
        for note in caveats(snapshot):
            say(f"note: {note}")
        return any(row.difference for row in found) or (len(found) == 1 and found[0].n > 0)

    return conclude_comparison(snapshot, seconds, tell)


def best_lines(snapshot: Snapshot, path: Path, options: Options) -> list[str]:
    """Return the best configuration, what changed against the baseline, and the next commands."""
    best = best_trial(snapshot)
    found = [standing(snapshot), *aims(snapshot), ""]
    changed = changes(snapshot, best)
    width = max((len(field) for field, _, _ in changed), default=0)
    found += [f"  {field:{width}}  {as_text(before):>8} -> {as_text(after)}" for field, before, after in changed]
    found += ["" if changed else "  the baseline itself: nothing that was tried is better"]
    if notes := caveats(snapshot):
        found += [*(f"note: {note}" for note in notes), ""]
    at = where(options)
    return [
        *found,
        f"complete configuration: {path}",
        "next:",
        f"  hpo confirm --study {snapshot.name}{at} --workers {max(1, options.workers)}",
        f"  hpo export --study {snapshot.name}{at} -o best.yaml",
        "  hpo train best.yaml",
        f"  hpo dashboard{at}",
    ]

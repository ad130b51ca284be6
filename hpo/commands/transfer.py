"""`hpo transfer`: run a ladder of short runs, fit laws to it, and predict the configuration of a long run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hpo.analysis.progress import has_ended, trial_counts
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.files import config_text
from hpo.console import Format, command_line, format_duration, print_record, print_records, say
from hpo.errors import Problem
from hpo.evidence.comparison import check_same_options, existing_study
from hpo.evidence.preferred import trial_to_export
from hpo.evidence.verify import VERIFIES, conclude_verification, plan_verification, verification_name
from hpo.launcher.options import LaunchOptions, storage_option
from hpo.launcher.supervisor import run_study
from hpo.runs.run_dir import write_file
from hpo.storage.attributes import LADDER_OF, SPEC
from hpo.storage.engine import open_readonly
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.study.arithmetic import with_arithmetic
from hpo.study.places import at_places
from hpo.study.spec import Study
from hpo.study.stored import study_from_spec
from hpo.transfer.cells import Cell
from hpo.transfer.ladder import Ladder, ladders_of, read_ladder
from hpo.transfer.lines import cell_table, law_table, plan_table, prediction_lines, prediction_table
from hpo.transfer.plan import LadderRequest, ladder_name, plan_ladder
from hpo.transfer.prediction import Prediction, fit_ladder, predict
from hpo.transfer.scale import parse_target

DEFAULT_CELLS = 4
FIRST_SEED = 2_000_000  # of verifications
OTHER_LADDER = "`--as NAME` trains another ladder"


@dataclass(frozen=True)
class TransferRequest:
    """The options of `hpo transfer`; None means the default, or the value of the ladder that is continued.

    to: the target as PATH=VALUE,PATH=VALUE. cells, budget: of the ladder. verify: pairs of runs at the target.
    name: of the study of the ladder.
    """

    study: str | None
    to: str | None
    cells: int | None
    budget: int | None
    verify: int | None
    name: str | None


def run_transfer(request: TransferRequest, options: LaunchOptions, format: Format) -> int:
    """Run the ladder of a search, predict at the target, and verify the prediction if requested; return the status."""
    given = None if request.to is None else parse_target(request.to)
    with open_readonly(options.storage) as store:
        snapshot = read_snapshot(store, request.study)
        name = request.name or ladder_name(snapshot.name)
        study = existing_study(store, name, LADDER_OF, snapshot)
        if study is None:
            study = _new_ladder(store, snapshot, name, request, given)
        else:
            about = study.file.about
            stored = {"--ladder": (request.cells, len(about["cells"]))}
            stored |= {"--budget-tokens": (request.budget, about["budget_tokens"])}
            check_same_options(study, stored, OTHER_LADDER)
    study, target = at_places(study, options.overrides), given or dict(study.file.about["target"])
    if not options.quiet:
        print_records(plan_table([Cell(c["values"], c["runs"]) for c in study.file.about["cells"]]), Format.table)
    status = run_study(replace(options, study=name), study, partial(conclude_ladder, target=target, format=format))
    if status or options.dry_run or request.verify is None:
        return status
    return _verify(name, target, request.verify, options, format)


def _new_ladder(
    store: OpenStorage, snapshot: Snapshot, name: str, request: TransferRequest, target: Mapping[str, Any] | None
) -> Study:
    if target is None:
        raise Problem(f"--to: required, because {snapshot.name} has no ladder {name} yet; such as run.tokens=8_000_000")
    copied, known = trial_to_export(store, snapshot)
    say(f"copied configuration: trial {copied.number} of {snapshot.name}, {known}")
    cells = DEFAULT_CELLS if request.cells is None else request.cells
    # So that no ladder has the runs of an earlier one. Ladders of earlier versions have the seed 0.
    seed = max((ladder.spec["about"].get("seed", 0) + 1 for ladder in ladders_of(store, snapshot)), default=0)
    return plan_ladder(snapshot, copied, LadderRequest(name, target, cells, request.budget, seed))


def conclude_ladder(
    snapshot: Snapshot,
    folder: Path,
    options: LaunchOptions,
    seconds: float,
    target: Mapping[str, Any] | None = None,
    format: Format = Format.table,
) -> int:
    """Print the laws of a ladder whose runs have ended and its prediction, and save the predicted configuration.

    target: None for the target with which the ladder was planned.
    """
    if not has_ended(snapshot):
        n, total = trial_counts(snapshot)["complete"], sum(snapshot.slots.values())
        say(f"{snapshot.name}: {n} of {total} runs are complete; laws are fitted when all runs have ended")
        return 0
    say(f"{snapshot.name}: finished after {format_duration(seconds)}")
    ladder = read_ladder(snapshot)
    surface = fit_ladder(ladder)
    prediction = predict(ladder, surface, target or snapshot.spec["about"]["target"])
    lines = prediction_lines(snapshot.objective, prediction)
    if format in (Format.json, Format.yaml):
        print_record(prediction_record(prediction), format)
    else:
        print_records(cell_table(ladder, surface), format)
        print_records(law_table(ladder, surface), format)
        print_records(prediction_table(prediction), format)
    path = folder / "fitted.yaml"
    write_file(path, prediction_text(snapshot, ladder, prediction))
    storage = storage_option(options)
    about = snapshot.spec["about"]
    other = [] if snapshot.name == ladder_name(about[LADDER_OF]) else ["--as", snapshot.name]
    if target not in (None, about["target"]):
        other += ["--to", ",".join(f"{path}={value}" for path, value in prediction.target.items())]
    verify = command_line("hpo", "transfer", "--study", about[LADDER_OF], *other, "--verify", 8)
    say("\n".join(["", *lines, "", f"predicted configuration: {path}", "next:"]))
    say(f"  {command_line('hpo', 'train', path)}\n  {verify}{storage}")
    return 0


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as `--format json` prints it."""
    regret, low, high = prediction.regret
    return {
        "target": dict(prediction.target),
        "fields": prediction_table(prediction),
        "loss": {"predicted": prediction.value, "low": prediction.low, "high": prediction.high},
        "regret_of_copying": {"mean": regret, "low": low, "high": high},
        "tokens_beyond_ladder": prediction.reach,
        "size_beyond_ladder": prediction.size_reach,
        "runs": prediction.n_runs,
    }


def prediction_text(snapshot: Snapshot, ladder: Ladder, prediction: Prediction) -> str:
    """Return the predicted configuration as a YAML file that `hpo train` accepts."""
    study = with_arithmetic(ladder.study, snapshot.arithmetic)
    provenance = {
        "study": snapshot.spec["about"][LADDER_OF],
        "ladder": snapshot.name,
        "rule": "fitted",
        "objective": snapshot.objective,
        "predicted": {"loss": prediction.value, "low": prediction.low, "high": prediction.high},
        "data_hash": snapshot.data_hash,
        "train": snapshot.spec["train"],
        "config": snapshot.spec["config"],
    }
    return config_text(study.configured(prediction.values), provenance)


def _verify(name: str, target: Mapping[str, Any], n: int, options: LaunchOptions, format: Format) -> int:
    """Run the prediction, the copied configuration and the nearest cell's at the target; return the exit status."""
    with open_readonly(options.storage) as store:
        snapshot = read_snapshot(store, name)
        if not has_ended(snapshot):
            return 0
        own = verification_name(name, target)
        study_id = study_ids(store).get(own)
        attrs = {} if study_id is None else study_attrs(store, study_id, own)
        ladder = read_ladder(snapshot)
        if SPEC not in attrs:
            study = plan_verification(ladder.study, predict(ladder, fit_ladder(ladder), target), n, FIRST_SEED)
        elif attrs[SPEC].get("about", {}).get(VERIFIES) not in snapshot.names:
            raise Problem(f"--verify: study {own} of the storage is no verification of {name}; `--as NAME` avoids it")
        else:
            study = study_from_spec(attrs[SPEC], own)
            check_same_options(study, {"--verify": (n, len(study.file.seeds))}, OTHER_LADDER)
    study = at_places(study, options.overrides)
    return run_study(replace(options, study=own), study, partial(conclude_verification, format=format))

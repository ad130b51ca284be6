"""`hpo train` of a configuration that a command trains."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.commands.train_output import collected_signals, origin, rung_line
from hpo.config.files import config_text
from hpo.config.overrides import apply_overrides
from hpo.config.validation import error_messages
from hpo.console import command_line, say, show
from hpo.errors import CommandFailed, Problem, WorkFailed
from hpo.runs.command import CommandRuns
from hpo.runs.command_files import TrialPlace
from hpo.runs.metrics import append_metrics, metric, read_metrics
from hpo.runs.run_dir import write_file
from hpo.runs.trainable import parse_report
from hpo.study.command import CommandPlan, plan_from_json
from hpo.study.command_config import command_config


def train_command(
    path: Path, tree: Mapping[str, Any], provenance: Mapping[str, Any], overrides: Sequence[str], folder: Path
) -> int:
    """Run the command of a configuration file and return the exit status.

    folder: of the run. If it has values of an earlier run, the script resumes from its checkpoint.

    Raises:
        Problem: the file does not hold a valid command.
        WorkFailed: the command failed.
    """
    try:
        plan = plan_from_json(provenance["command"], str(provenance.get("objective", "val_loss")))
        kind = command_config(plan.command, plan.env, tree, {})
    except (ValidationError, TypeError, KeyError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise Problem(f"{path}: provenance.command: must be as `hpo export` writes it, {text}") from None
    try:
        config = apply_overrides(kind.model_validate(dict(tree)), overrides)
    except ValidationError as error:
        raise Problem(*(f"{path}: {text}" for text in error_messages(error, kind))) from None
    write_file(folder / "config.yaml", config_text(config, origin(provenance, None, overrides)))
    try:
        return _run(plan, config, folder, provenance)
    except CommandFailed as failed:
        raise WorkFailed(str(failed)) from None


def _run(plan: CommandPlan, config: BaseModel, folder: Path, provenance: Mapping[str, Any]) -> int:
    """Run the command to its end and print one line per rung. Ctrl-C and SIGTERM stop it."""
    log, number = folder / "metrics.jsonl", provenance.get("trial")
    known = max((row["rung"] for row in read_metrics(log)), default=0)
    attempt = 1 + len(list(folder.glob("reports-*.jsonl")))
    with collected_signals() as signals, closing(CommandRuns(plan, [config], lambda: bool(signals))) as runs:
        runs.assign(0, TrialPlace(str(provenance.get("study", "")), number or 0, attempt, folder, known))
        for _, reports in runs:
            if signals:
                say(f"stopped; `{command_line('hpo', 'train', folder / 'config.yaml', '--resume')}` resumes the run")
                return 128 + signals[0]
            for report in reports.values():
                rung, value, metrics = parse_report(report, plan.objective)
                append_metrics(log, metrics)
                show(rung_line(rung, value, plan.objective, metrics))
                if rung == plan.rungs:
                    runs.finish(0)
                    runs.stop(0)
    last = list(read_metrics(log))[-1:]
    if not last or metric(last[0], plan.objective) is None:
        raise WorkFailed(f"the run diverged: {plan.objective} is not finite")
    say(f"run: {folder}")
    return 0

"""The commands that only look at a storage. They import neither Optuna nor torch, so they answer at once."""

from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.options import RUNS, Number, Out, Print, Storage, Study, looking, possible
from hpo.console import Format, say

commands = typer.Typer()


@commands.command()
def studies(storage: Storage = None, format: Print = Format.table) -> None:
    """List the studies of a storage."""
    from hpo.commands.show import studies
    from hpo.console import rows

    with looking(storage) as store:
        rows(studies(store), format)


@commands.command()
def status(
    study: Study = None,
    storage: Storage = None,
    format: Print = Format.table,
    watch: Annotated[bool, typer.Option("--watch", help="Print again every two seconds until the study ends.")] = False,
) -> None:
    """Say how far a study is, and what is best so far."""
    from hpo.commands.show import show_status

    with looking(storage) as store:
        show_status(store, study, format, watch)


@commands.command()
def trials(study: Study = None, storage: Storage = None, format: Print = Format.table) -> None:
    """List the trials of a study."""
    from hpo.analysis.snapshot import read_snapshot
    from hpo.analysis.summary import row
    from hpo.console import rows

    with looking(storage) as store:
        snapshot = read_snapshot(store, study)
        rows([row(snapshot, trial) for trial in snapshot.trials], format)


@commands.command()
def show(
    number: Number,
    study: Study = None,
    storage: Storage = None,
    format: Print = Format.table,
) -> None:
    """Show one trial: values, curve, how it ended."""
    from hpo.analysis.snapshot import read_snapshot
    from hpo.commands.show import trial
    from hpo.console import record

    with looking(storage) as store:
        record(trial(read_snapshot(store, study), number), format)


@commands.command()
def why(
    number: Number,
    study: Study = None,
    storage: Storage = None,
    format: Print = Format.table,
) -> None:
    """Say why a trial was suggested, and why it ended as it did, in a sentence for each decision."""
    from hpo.analysis.decisions import why
    from hpo.analysis.snapshot import read_snapshot
    from hpo.console import rows

    with looking(storage) as store:
        found = why(read_snapshot(store, study), number)
    if format is not Format.table:
        rows(found, format)
        return
    for decision in found:
        print(decision["sentence"])


@commands.command()
def logs(
    number: Number,
    study: Study = None,
    storage: Storage = None,
    out: Out = RUNS,
    format: Print = Format.table,
) -> None:
    """Print the metrics of a trial, a line a rung, and what it wrote to standard error."""
    from hpo.analysis.snapshot import find, read_snapshot
    from hpo.commands.show import show_logs

    with looking(storage) as store:
        snapshot = read_snapshot(store, study)
        show_logs(snapshot, find(snapshot, number), out, format)


@commands.command()
def best(study: Study = None, storage: Storage = None, format: Print = Format.table) -> None:
    """Print the best trial."""
    from hpo.analysis.snapshot import best_trial, read_snapshot
    from hpo.commands.show import trial
    from hpo.console import record

    with looking(storage) as store:
        snapshot = read_snapshot(store, study)
        record(trial(snapshot, best_trial(snapshot).number), format)


@commands.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; else standard output.", callback=possible)
    ] = None,
    trial: Annotated[int | None, typer.Option(help="Number of the trial; else the best.")] = None,
    study: Study = None,
    storage: Storage = None,
) -> None:
    """Write the configuration of the best trial, complete and trainable.

    One that `hpo confirm` found better than the baseline comes before the best of the search.
    """
    from hpo.analysis.export import picked, text
    from hpo.analysis.snapshot import read_snapshot
    from hpo.evidence.preferred import trial_to_export
    from hpo.runs.run_dir import write_file

    with looking(storage) as store:
        snapshot = read_snapshot(store, study)
        kept, known = trial_to_export(store, snapshot) if trial is None else (picked(snapshot, trial), "")
        found = text(snapshot, kept, known)
    if output is None:
        print(found, end="")
        return
    write_file(output, found)
    told = f"trial {kept.number} of {snapshot.name}" + (f", {known}" if known else "")
    say(f"{output}: {told}; next: hpo train {output}")

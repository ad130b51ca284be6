"""The commands that read a storage. They import neither Optuna nor torch, so they start quickly."""

from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.groups import Commands
from hpo.cli.options import (
    DEFAULT_STORAGE,
    RUNS,
    AllowTrain,
    By,
    CoolDown,
    Out,
    OutputFormat,
    RuleOption,
    StorageOptions,
    StudyName,
    TrialNumber,
    open_to_read,
    output_file,
    storage_url,
)
from hpo.cli.panels import INSPECT
from hpo.console import Format, command_line, print_yaml, say
from hpo.console import show as show_text

inspect_commands = Commands()


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo studies")
def studies(storage: StorageOptions = DEFAULT_STORAGE, format: OutputFormat = Format.table) -> None:
    """List the studies of a storage."""
    from hpo.commands.show import study_records
    from hpo.console import print_records

    with open_to_read(storage) as store:
        print_records(study_records(store), format)


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo status --study beta2_sweep --watch")
def status(
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    format: OutputFormat = Format.table,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the live view of `hpo launch` until the study ends.")
    ] = False,
) -> None:
    """Show the progress of a study and its best trial."""
    from hpo.commands.show import show_status

    with open_to_read(storage) as store:
        show_status(store, study, format, watch)


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo trials --format csv")
def trials(
    study: StudyName = None, storage: StorageOptions = DEFAULT_STORAGE, format: OutputFormat = Format.table
) -> None:
    """List the trials of a study."""
    from hpo.analysis.snapshot import read_snapshot
    from hpo.analysis.summary import trial_rows
    from hpo.console import print_records

    with open_to_read(storage) as store:
        print_records(trial_rows(read_snapshot(store, study)), format)


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo show 7")
def show(
    number: TrialNumber,
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    format: OutputFormat = Format.table,
) -> None:
    """Show one trial: parameters, value per rung, final state."""
    from hpo.analysis.snapshot import read_snapshot
    from hpo.commands.show import trial_record
    from hpo.console import print_record

    with open_to_read(storage) as store:
        print_record(trial_record(read_snapshot(store, study), number), format)


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo why 7")
def why(
    number: TrialNumber,
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    format: OutputFormat = Format.table,
) -> None:
    """Explain why a trial was suggested and why it ended.

    The command prints one sentence for each decision of the sampler and the pruner.
    """
    from hpo.analysis import decisions
    from hpo.analysis.snapshot import read_snapshot
    from hpo.console import print_records

    with open_to_read(storage) as store:
        records = decisions.decisions(read_snapshot(store, study), number)
    if format is not Format.table:
        print_records(records, format)
        return
    for decision in records:
        show_text(decision["sentence"])


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo logs 7")
def logs(
    number: TrialNumber,
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    out: Out = RUNS,
    format: OutputFormat = Format.table,
) -> None:
    """Print the metrics and the error output of a trial.

    The metrics have one line per rung. The error output is what the trial wrote to standard error.
    """
    from hpo.analysis.snapshot import find_trial, read_snapshot
    from hpo.commands.show import show_logs

    with open_to_read(storage) as store:
        snapshot = read_snapshot(store, study)
        show_logs(snapshot, find_trial(snapshot, number), out, format)


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo best --format json")
def best(
    study: StudyName = None,
    by: By = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    format: OutputFormat = Format.table,
) -> None:
    """Show the best trial of a study."""
    from hpo.analysis.snapshot import read_snapshot
    from hpo.commands.best import best_record
    from hpo.console import print_record

    with open_to_read(storage) as store:
        print_record(best_record(read_snapshot(store, study), by), format)


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo export -o best.yaml")
def export(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: standard output.", callback=output_file),
    ] = None,
    trial: Annotated[int | None, typer.Option(help="Number of the trial. Default: the best trial.")] = None,
    by: By = None,
    cool_down: CoolDown = None,
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    allow_train: AllowTrain = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the run. Default: as in the search.")] = None,
    rule: RuleOption = None,
) -> None:
    """Write the complete configuration of the best trial.

    `hpo train` trains this configuration. If `hpo confirm` found trials that are better than the baseline, `hpo export`
    writes the best of them instead of the best trial of the search.

    With --tokens, the file describes a longer or shorter run, and holds the rule that was used. The command prints what
    does not carry over to that length, and what each --rule would change.
    """
    from hpo.commands.export import AtLength, export_trial
    from hpo.config.permission import permit_options
    from hpo.runs.run_dir import write_file

    permit_options(allow_train or [])
    with open_to_read(storage) as store:
        config, origin = export_trial(store, study, trial, by, AtLength(tokens, rule, cool_down))
    if output is None or output == Path("-"):
        print_yaml(config)
        return
    write_file(output, config)
    say(f"{output}: {origin}; next: {command_line('hpo', 'train', output)}")


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo report --study beta2_sweep --html report.html")
def report(
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    out: Out = RUNS,
    html: Annotated[Path | None, typer.Option(callback=output_file, help="Write the HTML page to this file.")] = None,
    pdf: Annotated[
        Path | None,
        typer.Option(callback=output_file, help="Write the page as PDF to this file. Needs Chromium on this machine."),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            callback=output_file,
            help="Write all trials to this file, and all curves to a second file whose name ends in -curves.csv.",
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(callback=output_file, help="Write verdict, noise, study, trials and curves to this file."),
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Add verdict, figures and files to the dashboard.")
    ] = True,
) -> None:
    """Write a report of a study as one HTML page.

    Without options, the page is runs/STUDY/report.html. The page needs no network. It starts with a verdict: the best
    trial against the baseline, how much of the difference may be noise, and whether the result was confirmed. Figures,
    tables and the commands that reproduce the study follow.
    """
    from hpo.report.build import ReportFiles, write_report

    say("\n".join(write_report(storage_url(storage), study, out, ReportFiles(html, pdf, csv, json), publish).lines()))


@inspect_commands.command(rich_help_panel=INSPECT, epilog="Example: hpo dashboard --port 8080")
def dashboard(
    storage: StorageOptions = DEFAULT_STORAGE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on. 0: any free port.")] = 8080,
    edit: Annotated[
        bool | None,
        typer.Option(
            "--allow-edit/--read-only",
            help="Allow or forbid changes of studies. Default: allowed on 127.0.0.1, otherwise read-only.",
        ),
    ] = None,
    out: Out = RUNS,
    no_token: Annotated[
        bool,
        typer.Option("--no-token", help="Let all users of this machine in without the token of the printed link."),
    ] = False,
) -> None:
    """Serve the Optuna Dashboard for a storage.

    On 127.0.0.1, open the link that the command prints. Its token lets only you in, not the other users of this
    machine. If HPO_DASHBOARD_PASSWORD is set, the dashboard asks for this password instead. To listen on any other
    address, a password is required.
    """
    from hpo.dashboard.server import serve

    serve(storage_url(storage), host, port, edit, out, use_token=not no_token)

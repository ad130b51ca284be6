"""The commands that control a study by a request in the storage, from any machine that reaches the storage."""

from typing import Annotated

import typer

from hpo.cli.groups import Commands
from hpo.cli.options import DEFAULT_STORAGE, AllowTrain, Set, StorageOptions, StudyName, TrialNumber, storage_url
from hpo.cli.panels import CONTROL
from hpo.console import say

control_commands = Commands()

Reason = Annotated[
    str,
    typer.Option("--because", metavar="TEXT", help="Reason for the change. It is stored with the event."),
]


@control_commands.command(rich_help_panel=CONTROL, epilog="Example: hpo pause --study beta2_sweep")
def pause(study: StudyName = None, storage: StorageOptions = DEFAULT_STORAGE, because: Reason = "") -> None:
    """Pause a study: its workers requeue their trials and wait.

    Workers act at the next rung, for scripts within two seconds. `hpo resume` continues the study.
    """
    _set_state(storage, study, "paused", because)


@control_commands.command(rich_help_panel=CONTROL, epilog="Example: hpo resume --study beta2_sweep")
def resume(study: StudyName = None, storage: StorageOptions = DEFAULT_STORAGE, because: Reason = "") -> None:
    """Resume a paused study.

    Waiting workers continue within seconds. A stopped study becomes active too, and new workers can join it.
    """
    _set_state(storage, study, "active", because)


@control_commands.command(rich_help_panel=CONTROL, epilog="Example: hpo stop --study beta2_sweep")
def stop(study: StudyName = None, storage: StorageOptions = DEFAULT_STORAGE, because: Reason = "") -> None:
    """Stop a study: its workers requeue their trials and exit.

    Workers act at the next rung, for scripts within two seconds. `hpo launch` of the same study continues it.
    """
    _set_state(storage, study, "stopped", because)


@control_commands.command(rich_help_panel=CONTROL, epilog="Example: hpo kill 7")
def kill(number: TrialNumber, study: StudyName = None, storage: StorageOptions = DEFAULT_STORAGE) -> None:
    """Stop one trial and mark it as failed.

    A running trial stops at its next rung, a script within two seconds. An interrupted trial fails immediately.
    """
    from hpo.commands.control import kill_trial
    from hpo.storage.store import open_store

    with open_store(storage_url(storage)) as store:
        say(kill_trial(store, study, number))


@control_commands.command(rich_help_panel=CONTROL, epilog="Example: hpo retry --failed")
def retry(
    number: Annotated[int | None, typer.Argument(help="Number of the trial.")] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Retry every failed trial that was not retried before.")
    ] = False,
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
) -> None:
    """Run a failed trial again with the same parameters.

    The retry is a new trial and does not count toward the budget.
    """
    from hpo.commands.enqueue import retry_trials
    from hpo.storage.store import open_store

    with open_store(storage_url(storage)) as store:
        say("\n".join(retry_trials(store, study, number, failed)))


@control_commands.command(rich_help_panel=CONTROL, epilog="Example: hpo enqueue --set optimizer.lr=3e-3")
def enqueue(
    overrides: Set = None,
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    allow_train: AllowTrain = None,
) -> None:
    """Add a trial with parameters that you choose.

    The trial runs before the next trial of the search and does not count toward the budget. All other fields have the
    value of the study's base configuration.
    """
    from hpo.commands.enqueue import enqueue_trial
    from hpo.config.permission import permit_options
    from hpo.storage.store import open_store

    permit_options(allow_train or [])
    with open_store(storage_url(storage)) as store:
        say("\n".join(enqueue_trial(store, study, overrides or [])))


@control_commands.command(rich_help_panel=CONTROL, epilog="Example: hpo fork new.yaml --from beta2_sweep")
def fork(
    file: Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study, or path of a study file.")],
    origin: Annotated[str, typer.Option("--from", metavar="NAME", help="Study whose trials to copy.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NEW", help="Name of the new study. Default: the name of the file.")
    ] = None,
    overrides: Set = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials to run in addition to the copied trials.")
    ] = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    allow_train: AllowTrain = None,
) -> None:
    """Create a study that starts with trials of another study.

    The command copies a finished trial if the new study would train the same complete configuration, and if the new
    space contains its parameters. `hpo launch` then runs the new study.
    """
    from hpo.commands.fork import fork_study
    from hpo.config.permission import permit_options
    from hpo.storage.store import open_store

    permit_options(allow_train or [])
    with open_store(storage_url(storage)) as store:
        say(fork_study(store, file, origin, name, overrides or [], trials))


def _set_state(storage: StorageOptions, study: str | None, state: str, because: str) -> None:
    from hpo.commands.control import set_study_state
    from hpo.storage.store import open_store

    with open_store(storage_url(storage)) as store:
        say(set_study_state(store, study, state, because))

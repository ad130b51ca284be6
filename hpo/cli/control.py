"""The commands that act on a running study, from any machine that reaches its storage."""

from typing import Annotated

import typer

from hpo.cli.options import Number, Set, Storage, Study, url
from hpo.console import say
from hpo.errors import Problem

commands = typer.Typer()

Because = Annotated[str, typer.Option(metavar="TEXT", help="Why: kept with the event.")]


@commands.command()
def pause(study: Study = None, storage: Storage = None, because: Because = "") -> None:
    """Have workers finish their rung, give their trials back and wait."""
    _turn(storage, study, "paused", because)


@commands.command()
def resume(study: Study = None, storage: Storage = None, because: Because = "") -> None:
    """Have waiting workers go on, and let new ones join a study that was stopped."""
    _turn(storage, study, "active", because)


@commands.command()
def stop(study: Study = None, storage: Storage = None, because: Because = "") -> None:
    """Have workers finish their rung, give their trials back and leave."""
    _turn(storage, study, "stopped", because)


@commands.command()
def kill(number: Number, study: Study = None, storage: Storage = None) -> None:
    """End one trial as failed: at its next rung, or at once where no worker holds it."""
    from hpo.commands.control import kill
    from hpo.storage.store import open_store

    with open_store(url(storage)) as store:
        say(kill(store, study, number))


@commands.command()
def retry(
    number: Annotated[int | None, typer.Argument(help="Number of the trial.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Every failed trial that was not tried again.")] = False,
    study: Study = None,
    storage: Storage = None,
) -> None:
    """Run the parameters of a failed trial again, as a new trial beside the budget."""
    from hpo.commands.enqueue import again
    from hpo.storage.store import open_store

    with open_store(url(storage)) as store:
        say("\n".join(again(store, study, number, failed)))


@commands.command()
def enqueue(overrides: Set = None, study: Study = None, storage: Storage = None) -> None:
    """Run a configuration of your own next, beside the budget."""
    from hpo.commands.enqueue import enqueue
    from hpo.storage.store import open_store

    with open_store(url(storage)) as store:
        say("\n".join(enqueue(store, study, overrides or [])))


@commands.command()
def fork(
    file: Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study file, or its path.")],
    origin: Annotated[str, typer.Option("--from", metavar="NAME", help="Study whose trials to take over.")],
    name: Annotated[str | None, typer.Option("--as", metavar="NEW", help="Name; else that of the file.")] = None,
    overrides: Set = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials to run, those taken over not counted.")] = None,
    storage: Storage = None,
) -> None:
    """Begin a study with those finished trials of another one that it would train alike."""
    from hpo.commands.fork import fork
    from hpo.storage.store import open_store

    with open_store(url(storage)) as store:
        say(fork(store, file, origin, name, overrides or [], trials))


def _turn(storage: str | None, study: str | None, state: str, because: str) -> None:
    from hpo.commands.control import turn
    from hpo.storage.store import open_store

    if any("\ud800" <= letter <= "\udfff" for letter in because):  # bytes of the command line that are no text
        raise Problem(f"--because: must be text in UTF-8, got {because!r}")
    with open_store(url(storage)) as store:
        say(turn(store, study, state, because))

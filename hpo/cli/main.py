"""The command line. Commands import what they need when they run, so that looking at a storage loads no torch."""

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hpo.cli import control, evidence
from hpo.cli.inspect import commands
from hpo.cli.options import RUNS, Config, Out, Pack, Print, Set, Storage, Study, leave, possible, url
from hpo.console import Format, say
from hpo.errors import Problem


class Where(StrEnum):
    """Where the workers of a launch run."""

    local = "local"
    ray = "ray"


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Search the hyperparameters of short GPT runs, and keep what is found.",
)
texts = typer.Typer(no_args_is_help=True, help="Prepare and look at the text that runs train on.")
app.add_typer(texts, name="data")

app.add_typer(commands)
app.add_typer(control.commands)
app.add_typer(evidence.commands)


@app.command()
def launch(
    study: Annotated[str, typer.Option(help="Name of a study, or a study file.")],
    workers: Annotated[
        int, typer.Option(min=0, max=1024, help="Worker processes; 0: one, or one for each place on the GPUs.")
    ] = 0,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all; a larger number extends a study.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Hours after which no trial is begun.")] = None,
    storage: Storage = None,
    overrides: Set = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampler.")] = None,
    gpus: Annotated[str, typer.Option(help="Numbers of the GPUs to use, such as 0,1.")] = "",
    per_gpu: Annotated[int, typer.Option(min=1, max=64, help="Workers on each GPU.")] = 1,
    on: Annotated[Where, typer.Option(help="This machine, or the nodes of a running Ray cluster.")] = Where.local,
    address: Annotated[
        str, typer.Option(help="HOST:PORT of the Ray cluster's head; else $RAY_ADDRESS, else the one on this machine.")
    ] = "",
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, help="GPUs of a worker on a Ray cluster; 0.5: two workers share one.")
    ] = 0.0,
    pack: Pack = 1,
    out: Out = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, say what would run, and end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what was found.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="A line an event instead of a live table.")] = False,
) -> None:
    """Run a study: make it, start workers, show how they fare, print the best configuration.

    With --on ray, Ray finds room for the workers, one CPU each, and other room where a node is lost. The storage must
    be Postgres, and hpo installed on each node, which prepares the data for itself. A trial of a lost node goes on
    from its checkpoint where all nodes see the folder --out, and starts again elsewhere where they do not.
    """
    from hpo.commands.launch import launch
    from hpo.launcher.supervisor import Options

    options = Options(
        study=study,
        storage=url(storage),
        workers=workers,
        budget={"trials": trials, "hours": hours},
        overrides=overrides or [],
        seed=seed,
        gpus=[gpu.strip() for gpu in gpus.split(",") if gpu.strip()],
        per_gpu=per_gpu,
        on=on,
        address=address,
        gpus_per_worker=gpus_per_worker,
        pack=pack,
        out=out,
        dry_run=dry_run,
        quiet=quiet,
        plain=plain,
    )
    leave(launch(options))


@app.command()
def worker(
    study: Study = None,
    storage: Storage = None,
    pack: Pack = 1,
    gpus: Annotated[str, typer.Option(help="Number of the GPU to use.")] = "",
    out: Out = RUNS,
    follow: Annotated[
        bool, typer.Option("--follow", help="Serve every active study of the storage, and wait for more.")
    ] = False,
) -> None:
    """Join a study and run its trials, until none is left."""
    if gpus:
        from hpo.runs.resources import check_gpus

        check_gpus([gpu.strip() for gpu in gpus.split(",")])
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # before torch is imported
    if follow:
        from hpo.worker.follow import Follower

        if study is not None:
            raise Problem(f"--study: must be left out with --follow, which serves every study, got {study}")
        leave(Follower(url(storage), pack, out).work())
        return
    from hpo.worker.join import join_study

    leave(join_study(url(storage), study, pack, out))


@app.command()
def check(
    study: Annotated[str, typer.Argument(help="Name of a study, or a study file; claims: the ledger of claims.")],
    overrides: Set = None,
) -> None:
    """Check a study file: keys, bounds, both ends of every range; or a ledger of claims: every arm of every claim."""
    from hpo.config.discovery import find, is_ledger
    from hpo.study.load import load_study

    if is_ledger(path := find(study)):
        from hpo.evidence.claims.ledger import load_ledger as ledger

        if overrides:
            raise Problem(f"--set: must be left out with a ledger, whose arms are what they are; got {overrides[0]}")
        print(f"{path}: fine; {ledger(path).summary()}")
        return
    found = load_study(study, overrides or [])
    arms, n = found.file.arms, len(found.file.space)
    what = f"{n} hyperparameters" if arms is None else f"{len(arms)} arms x {len(found.file.seeds)} seeds"
    print(f"{found.source}: fine; {what}, {found.rungs} rungs")


@app.command()
def train(
    config: Config,
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last run of this file.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the run's folder.", callback=possible)] = RUNS / "train",
) -> None:
    """Train a configuration; --set run.tokens=... trains longer, the schedule stretched over the new length."""
    from hpo.commands.train import train

    leave(train(config, overrides or [], out, resume))


@app.command()
def limits(
    config: Config,
    overrides: Set = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Memory that may be used; else nine tenths of what is free.")
    ] = None,
    pack: Pack = 1,
    format: Print = Format.table,
) -> None:
    """Find the largest run.batch_size that fits in memory, by estimate and then by trying, two updates a try.

    There are eight tries at most, each a process of its own. The batch is no free choice: a larger one makes fewer
    updates of the same tokens, and so other results.
    """
    from hpo.commands.limits import limits

    limits(config, overrides or [], memory, pack, format)


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as `hpo train` prints it.", callback=possible)],
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to draw.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Print text drawn from a trained run."""
    from hpo.commands.train import sample

    print(sample(run, prompt, tokens, temperature, top_k, seed))


@app.command()
def dashboard(
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any.")] = 8080,
    edit: Annotated[
        bool | None,
        typer.Option("--allow-edit/--read-only", help="Whether pages may change studies; else on this machine only."),
    ] = None,
    out: Out = RUNS,
) -> None:
    """Serve the Optuna Dashboard over the storage; beyond this machine with HPO_DASHBOARD_PASSWORD only."""
    from hpo.dashboard.server import serve

    serve(url(storage), host, port, edit, out)


@app.command()
def doctor(
    study: Study = None,
    storage: Storage = None,
    out: Out = RUNS,
    fix: Annotated[
        bool, typer.Option("--fix", help="Do what is safe: free leases, remove leftovers, add columns.")
    ] = False,
    format: Print = Format.table,
) -> None:
    """Look for what is wrong: storage, clock, disks, GPUs, data, leases, leftover files; say what to do."""
    from hpo.commands.doctor import report

    leave(report(url(storage), study, out, fix, format))


@texts.command("prepare")
def data_prepare(
    study: Annotated[str | None, typer.Option(help="Prepare the text of this study.")] = None,
    overrides: Set = None,
    format: Print = Format.table,
) -> None:
    """Read, split and tokenize a text, so that no run has to."""
    from hpo.commands.data import prepare
    from hpo.console import record

    record(prepare(study, overrides or []), format)


@texts.command("list")
def data_list(format: Print = Format.table) -> None:
    """List the prepared texts of this machine."""
    from hpo.commands.data import listed
    from hpo.console import rows

    rows(listed(), format)


@texts.command("show")
def data_show(
    study: Annotated[str | None, typer.Option(help="Show the text of this study.")] = None,
    overrides: Set = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents to print.")] = 3,
) -> None:
    """Print some training documents of a text as a run sees them."""
    from hpo.commands.data import documents as some

    for text in some(study, overrides or [], documents):
        print(text)
        print("-" * 40)


def main() -> None:
    """Run the command line; problems are lines on standard error and an exit status, never a traceback."""
    try:
        app()
    except Problem as problem:
        _fail(problem, problem.status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `hpo trials | head`
    except Exception as error:
        from hpo.errors import StorageError

        if not isinstance(error, StorageError):
            raise
        _fail(error, 4)


def _fail(error: Exception, status: int) -> None:
    say("\n".join(f"hpo: {line}" if i == 0 else line for i, line in enumerate(str(error).splitlines())))
    sys.exit(status)

"""The command line. Commands import what they need when they run, so that looking at a storage loads no torch."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hpo.output import Format, say
from hpo.problems import Problem

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Search the hyperparameters of short GPT runs, and keep what is found.",
)
texts = typer.Typer(no_args_is_help=True, help="Prepare and look at the text that runs train on.")
app.add_typer(texts, name="data")

Study = Annotated[str | None, typer.Option(help="Name of the study; may be left out where the storage holds one.")]
Storage = Annotated[str | None, typer.Option(help="URL; else $HPO_STORAGE, else sqlite:///runs/hpo.db.")]
Print = Annotated[Format, typer.Option(help="How to print.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="A field of the configuration.")]
Out = Annotated[Path, typer.Option(help="Folder of the runs.")]
Pack = Annotated[int, typer.Option(min=1, help="Trials that a worker trains side by side.")]
RUNS = Path("runs")


@app.command()
def launch(
    study: Annotated[str, typer.Option(help="Name of a study, or a study file.")],
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes; 0: one, or one for each place on the GPUs.")
    ] = 0,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all; a larger number extends a study.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Hours after which no trial is begun.")] = None,
    storage: Storage = None,
    overrides: Set = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampler.")] = None,
    gpus: Annotated[str, typer.Option(help="Numbers of the GPUs to use, such as 0,1.")] = "",
    per_gpu: Annotated[int, typer.Option(min=1, help="Workers on each GPU.")] = 1,
    pack: Pack = 1,
    out: Out = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, say what would run, and end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what was found.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="A line an event instead of a live table.")] = False,
) -> None:
    """Run a study: make it, start workers, show how they fare, print the best configuration."""
    from hpo.launch import Options, launch

    options = Options(
        study=study,
        storage=_url(storage),
        workers=workers,
        budget={"trials": trials, "hours": hours},
        overrides=overrides or [],
        seed=seed,
        gpus=[gpu.strip() for gpu in gpus.split(",") if gpu.strip()],
        per_gpu=per_gpu,
        pack=pack,
        out=out,
        dry_run=dry_run,
        quiet=quiet,
        plain=plain,
    )
    _leave(launch(options))


@app.command()
def worker(
    study: Study = None,
    storage: Storage = None,
    pack: Pack = 1,
    gpus: Annotated[str, typer.Option(help="Number of the GPU to use.")] = "",
    out: Out = RUNS,
) -> None:
    """Join a study and run its trials, until none is left."""
    if gpus:
        from hpo.cores import check_gpus

        check_gpus([gpu.strip() for gpu in gpus.split(",")])
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # before torch is imported
    from hpo.joining import join

    _leave(join(_url(storage), study, pack, out))


@app.command()
def check(
    study: Annotated[str, typer.Argument(help="Name of a study, or a study file; claims: the ledger of claims.")],
    overrides: Set = None,
) -> None:
    """Check a study file: keys, bounds, both ends of every range; or a ledger of claims: every arm of every claim."""
    from hpo.checking import read
    from hpo.shelf import find, is_ledger

    if is_ledger(path := find(study)):
        from hpo.ledger import read as ledger

        if overrides:
            raise Problem(f"--set: must be left out with a ledger, whose arms are what they are; got {overrides[0]}")
        print(f"{path}: fine; {ledger(path).summary()}")
        return
    found = read(study, overrides or [])
    print(f"{found.source}: fine; {len(found.file.space)} hyperparameters, {found.rungs} rungs")


@app.command()
def studies(storage: Storage = None, format: Print = Format.table) -> None:
    """List the studies of a storage."""
    from hpo.output import rows
    from hpo.reports import studies

    with _looking(storage) as store:
        rows(studies(store), format)


@app.command()
def status(
    study: Study = None,
    storage: Storage = None,
    format: Print = Format.table,
    watch: Annotated[bool, typer.Option("--watch", help="Print again every two seconds until the study ends.")] = False,
) -> None:
    """Say how far a study is, and what is best so far."""
    from hpo.reports import show_status

    with _looking(storage) as store:
        show_status(store, study, format, watch)


@app.command()
def trials(study: Study = None, storage: Storage = None, format: Print = Format.table) -> None:
    """List the trials of a study."""
    from hpo.output import rows
    from hpo.status import row, snapshot

    with _looking(storage) as store:
        of = snapshot(store, study)
        rows([row(of, trial) for trial in of.trials], format)


@app.command()
def show(
    number: Annotated[int, typer.Argument(help="Number of the trial.")],
    study: Study = None,
    storage: Storage = None,
    format: Print = Format.table,
) -> None:
    """Show one trial: values, curve, how it ended."""
    from hpo.output import record
    from hpo.reports import trial
    from hpo.status import snapshot

    with _looking(storage) as store:
        record(trial(snapshot(store, study), number), format)


@app.command()
def logs(
    number: Annotated[int, typer.Argument(help="Number of the trial.")],
    study: Study = None,
    storage: Storage = None,
    out: Out = RUNS,
    format: Print = Format.table,
) -> None:
    """Print the metrics of a trial, a line a rung, and what it wrote to standard error."""
    from hpo.reports import show_logs
    from hpo.status import find, snapshot

    with _looking(storage) as store:
        of = snapshot(store, study)
        show_logs(of, find(of, number), out, format)


@app.command()
def best(study: Study = None, storage: Storage = None, format: Print = Format.table) -> None:
    """Print the best trial."""
    from hpo.output import record
    from hpo.reports import trial
    from hpo.status import best_trial, snapshot

    with _looking(storage) as store:
        of = snapshot(store, study)
        record(trial(of, best_trial(of).number), format)


@app.command()
def export(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; else standard output.")] = None,
    trial: Annotated[int | None, typer.Option(help="Number of the trial; else the best.")] = None,
    study: Study = None,
    storage: Storage = None,
) -> None:
    """Write the configuration of the best trial, complete and trainable."""
    from hpo.export import picked, text
    from hpo.folders import write
    from hpo.status import snapshot

    with _looking(storage) as store:
        of = snapshot(store, study)
        found = text(of, picked(of, trial))
    if output is None:
        print(found, end="")
        return
    write(output, found)
    say(f"{output}: trial {picked(of, trial).number} of {of.name}; next: hpo train {output}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Configuration, as `hpo export` writes it, or name of a base.")],
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last run of this file.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the run's folder.")] = RUNS / "train",
) -> None:
    """Train a configuration; --set run.tokens=... trains longer, the schedule stretched over the new length."""
    from hpo.training import train

    _leave(train(config, overrides or [], out, resume))


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as `hpo train` prints it.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to draw.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Print text drawn from a trained run."""
    from hpo.training import sample

    print(sample(run, prompt, tokens, temperature, top_k, seed))


@app.command()
def dashboard(
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any.")] = 8080,
) -> None:
    """Serve the Optuna Dashboard over the storage."""
    from hpo.dashboard import serve

    serve(_url(storage), host, port)


@texts.command("prepare")
def data_prepare(
    study: Annotated[str | None, typer.Option(help="Prepare the text of this study.")] = None,
    overrides: Set = None,
    format: Print = Format.table,
) -> None:
    """Read, split and tokenize a text, so that no run has to."""
    from hpo.corpora import prepare
    from hpo.output import record

    record(prepare(study, overrides or []), format)


@texts.command("list")
def data_list(format: Print = Format.table) -> None:
    """List the prepared texts of this machine."""
    from hpo.corpora import listed
    from hpo.output import rows

    rows(listed(), format)


@texts.command("show")
def data_show(
    study: Annotated[str | None, typer.Option(help="Show the text of this study.")] = None,
    overrides: Set = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents to print.")] = 3,
) -> None:
    """Print some training documents of a text as a run sees them."""
    from hpo.corpora import documents as some

    for text in some(study, overrides or [], documents):
        print(text)
        print("-" * 40)


def _url(storage: str | None) -> str:
    from hpo.engine import default_url

    return default_url(storage)


def _looking(storage: str | None) -> Any:
    from hpo.engine import look

    return look(_url(storage))


def _leave(status: int) -> None:
    if status:
        raise typer.Exit(status)


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
        from hpo.patience import StorageError

        if not isinstance(error, StorageError):
            raise
        _fail(error, 4)


def _fail(error: Exception, status: int) -> None:
    say("\n".join(f"hpo: {line}" if i == 0 else line for i, line in enumerate(str(error).splitlines())))
    sys.exit(status)

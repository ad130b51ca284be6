"""The commands that train: studies, single configurations, and text generated from a trained run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.groups import Commands, RunOptions
from hpo.cli.options import (
    DEFAULT_STORAGE,
    RUNS,
    AllowTrain,
    Config,
    Out,
    PackOrAuto,
    Place,
    RuleOption,
    Set,
    StorageOptions,
    StudyName,
    Track,
    TrackerName,
    exit_with,
    split_names,
    storage_url,
    valid_path,
)
from hpo.cli.panels import RUN
from hpo.console import show
from hpo.errors import Problem

run_commands = Commands()


@run_commands.command(rich_help_panel=RUN, epilog="Example: hpo launch --study beta2_sweep --workers 4")
def launch(
    *,
    study: Annotated[str, typer.Option(help="Name of a study, or path of a study file.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Total number of trials. A larger number extends the study.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, help="Hours after the first launch of the study. No trial starts later.")
    ] = None,
    overrides: Set = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler.")] = None,
    confirm: Annotated[
        bool,
        typer.Option("--confirm", help="After the search, confirm its best trial as `hpo confirm --sequential` does."),
    ] = False,
    run: RunOptions,
) -> None:
    """Run a study: create it, start workers, print the best trial.

    With --on ray, Ray places the workers on the nodes of a cluster, one CPU for each worker. If a node is lost, Ray
    places its workers elsewhere. The storage must be Postgres, and hpo must be installed on every node. Each node
    prepares the data itself. If all nodes share the folder --out, a trial of a lost node resumes from its checkpoint.
    Otherwise the trial starts again.

    With --on slurm, the workers are an array of Slurm jobs with the options of --slurm. The storage must be Postgres,
    and all nodes must share the current folder, the folder --out and the installation of hpo. Ctrl-C stops the workers
    after their rungs and cancels pending jobs. If this command ends in another way, the jobs continue.
    """
    from hpo.commands.launch import launch_study

    options = run.launch_options(study, overrides or [], seed, {"trials": trials, "hours": hours})
    exit_with(launch_study(replace(options, confirm=confirm)))


Follow = Annotated[
    bool,
    typer.Option("--follow", help="Work on every active study of the storage, or on --study, and wait for trials."),
]
UntilIdle = Annotated[
    bool, typer.Option("--until-idle", help="With --follow: end when no study has a trial left for this worker.")
]


@run_commands.command(rich_help_panel=RUN, epilog="Example: hpo worker --study beta2_sweep")
def worker(
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    pack: PackOrAuto = 1,
    gpus: Annotated[str, typer.Option(help="Index of the GPU to use.")] = "",
    out: Out = RUNS,
    overrides: Place = None,
    follow: Follow = False,
    until_idle: UntilIdle = False,
    allow_train: AllowTrain = None,
    track: Track = None,
) -> None:
    """Join a study and run its trials until none is left.

    With --follow and --study, the worker serves this study only. SIGTERM, SIGINT and SIGUSR1 let the worker finish its
    rung, save a checkpoint and release its trials.

    Everyone who can write the storage can choose which training code a study names. A worker imports your own training
    code only if --allow-train or a study file in this folder names it; with --follow, only if --allow-train names it.
    """
    from hpo.config.permission import permit_options

    permit_options(allow_train or [])
    _select_gpus(gpus)
    if until_idle and not follow:
        raise Problem("--until-idle: must be used with --follow; a worker of one study ends when no trial is left")
    if follow and study is None:
        _require_study({"--set": overrides, "--track": track})
    from hpo.commands.track import tracking_of_worker

    url, places = storage_url(storage), overrides or []
    with tracking_of_worker(url, study, [str(name) for name in track or []], out):
        if follow:
            from hpo.worker.follow import Follower, Service

            exit_with(Follower(url, pack, out, Service(study, places, until_idle)).work())
        else:
            from hpo.worker.join import join_study

            exit_with(join_study(url, study, pack, out, places))


def _select_gpus(gpus: str) -> None:
    if gpus:
        from hpo.runs.resources import check_gpus

        check_gpus(split_names(gpus))
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # before torch is imported


def _require_study(options: Mapping[str, Sequence[str] | None]) -> None:
    """Refuse the options that belong to one study.

    Raises:
        Problem: one of them was given.
    """
    for option, values in options.items():
        if values:
            raise Problem(
                f"{option}: must be used with --study, because --follow works on every study, got {values[0]}"
            )


@run_commands.command(rich_help_panel=RUN, epilog="Example: hpo track mlflow --study beta2_sweep")
def track(
    tracker: Annotated[TrackerName, typer.Argument(help="Where to copy the trials.")],
    study: StudyName = None,
    storage: StorageOptions = DEFAULT_STORAGE,
    out: Out = RUNS,
    follow: Annotated[bool, typer.Option("--follow", help="Continue until the study has ended.")] = False,
) -> None:
    """Copy the trials of a study to MLflow, W&B or TensorBoard.

    The command writes what the tracker does not have yet. `hpo launch --track` runs it beside the training. The client
    of the tracker reads its own settings, such as $MLFLOW_TRACKING_URI or $WANDB_MODE.
    """
    from hpo.commands.track import track_study

    exit_with(track_study(storage_url(storage), study, str(tracker), out, follow))


@run_commands.command(rich_help_panel=RUN, epilog="Example: hpo train best.yaml")
def train(
    config: Config,
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the last run of this configuration.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder in which the folder of the run is created.", callback=valid_path)
    ] = RUNS / "train",
    rule: RuleOption = None,
    storage: StorageOptions = DEFAULT_STORAGE,
) -> None:
    """Train one configuration without pruning.

    With --set run.tokens=..., the run is longer or shorter, and the learning rate schedule covers the new length. If
    the length, the batch or the size differs from that of the search, the command prints what does not carry over, and
    what each --rule would change. The storage is read only for --rule fitted.
    """
    from hpo.commands.train import train_config

    url = storage_url(storage) if storage != DEFAULT_STORAGE else None
    exit_with(train_config(config, overrides or [], out, resume, rule, url))


@run_commands.command(rich_help_panel=RUN, epilog='Example: hpo sample runs/train/best --prompt "The "')
def sample(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as `hpo train` prints it.", callback=valid_path)],
    prompt: Annotated[str, typer.Option(help="Text that the run continues.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Number of tokens to generate.")] = 200,
    temperature: Annotated[float, typer.Option(help="Sampling temperature. 0: always the most likely token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample only from the k most likely tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the sampling.")] = 0,
) -> None:
    """Generate text from a trained run."""
    from hpo.commands.sample import sample_text

    show(sample_text(run, prompt, tokens, temperature, top_k, seed))

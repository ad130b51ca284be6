"""Option groups: options that several commands take, declared once as the fields of a dataclass."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from hpo.cli.options import (
    DEFAULT_STORAGE,
    RUNS,
    AllowTrain,
    Out,
    PackOrAuto,
    StorageOptions,
    Track,
    split_names,
    storage_url,
)

if TYPE_CHECKING:
    from hpo.launcher.options import LaunchOptions


class Where(StrEnum):
    """Where the workers of a launch run."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


@dataclass(frozen=True)
class Placement:
    """The options that say how many workers run, and on which devices and machines."""

    workers: Annotated[
        int,
        typer.Option(
            min=0, max=1024, help="Number of worker processes. 0 starts one, or --per-gpu on each GPU of --gpus."
        ),
    ] = 0
    gpus: Annotated[str, typer.Option(help="Indices of the GPUs to use, for example 0,1.")] = ""
    per_gpu: Annotated[int, typer.Option(min=1, max=64, help="Number of workers on each GPU of --gpus.")] = 1
    pack: PackOrAuto = 1
    on: Annotated[
        Where, typer.Option(help="Run on this machine, on the nodes of a running Ray cluster, or as jobs of Slurm.")
    ] = Where.local
    address: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the Ray head node. Default: $RAY_ADDRESS, otherwise the cluster on this machine."
        ),
    ] = ""
    gpus_per_worker: Annotated[
        float,
        typer.Option(
            min=0, help="Number of GPUs of each worker on a Ray cluster. With 0.5, two workers share one GPU."
        ),
    ] = 0.0
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Option of sbatch for the jobs of --on slurm, such as partition=gpu. Can be repeated.",
        ),
    ] = None


@dataclass(frozen=True)
class Display:
    """The options that say what a launch prints."""

    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print what would run, then exit.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False
    plain: Annotated[bool, typer.Option("--plain", help="Print one line per event instead of the live view.")] = False
    notify: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Post a JSON message to this URL when a target is reached, a worker is quarantined, and at the end. "
            "Default: $HPO_NOTIFY, which hides the URL from other users of this machine.",
        ),
    ] = ""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of every command that runs trials."""

    storage: StorageOptions = DEFAULT_STORAGE
    out: Out = RUNS
    allow_train: AllowTrain = None
    track: Track = None
    placement: Placement
    display: Display

    def launch_options(
        self,
        study: str = "",
        overrides: Sequence[str] = (),
        seed: int | None = None,
        budget: Mapping[str, Any] | None = None,
    ) -> "LaunchOptions":
        """Return the options of the launcher, and permit the code of --allow-train in this process.

        study: "" for a command that names its study itself, such as `hpo confirm`.
        """
        from hpo.config.permission import permit_options
        from hpo.launcher.options import LaunchOptions

        permit_options(self.allow_train or [])
        place, display = self.placement, self.display
        return LaunchOptions(
            study=study,
            storage=storage_url(self.storage),
            workers=place.workers,
            budget=budget or {},
            overrides=overrides,
            seed=seed,
            gpus=split_names(place.gpus),
            per_gpu=place.per_gpu,
            on=place.on,
            address=place.address,
            gpus_per_worker=place.gpus_per_worker,
            slurm=place.slurm or [],
            pack=place.pack,
            out=self.out,
            allow_train=self.allow_train or [],
            track=[str(name) for name in self.track or []],
            dry_run=display.dry_run,
            quiet=display.quiet,
            plain=display.plain,
            notify=display.notify,
        )


class Commands(typer.Typer):
    """Commands whose parameters may be groups of options."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
        """Register a function as a command, with one option for each field of its groups."""
        register = super().command(*arguments, **options)
        return lambda function: register(expand_groups(function))


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter that is a dataclass by the fields of the dataclass, one option for each field.

    Typer reads the options of a command from its signature. The returned function takes all options by keyword and
    passes each group to `command` as one object.
    """
    signature = inspect.signature(command, eval_str=True)
    groups = {p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)}
    options = [option for parameter in signature.parameters.values() for option in _options_of(parameter)]

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        own = {name: values[name] for name in signature.parameters if name not in groups}
        command(**own, **{name: _build(group, values) for name, group in groups.items()})

    expanded.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    return expanded


def _options_of(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """Yield one keyword parameter for each option that a parameter stands for; groups may hold groups."""
    if not is_dataclass(parameter.annotation):
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    hints = get_type_hints(parameter.annotation, include_extras=True)
    for field in fields(parameter.annotation):
        default = inspect.Parameter.empty if is_dataclass(hints[field.name]) else field.default
        yield from _options_of(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )


def _build(group: Any, values: Mapping[str, Any]) -> Any:
    """Return an instance of a group from the values of its options."""
    hints = get_type_hints(group)
    return group(
        **{
            field.name: _build(hints[field.name], values) if is_dataclass(hints[field.name]) else values[field.name]
            for field in fields(group)
        }
    )

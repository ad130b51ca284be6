"""Where the workers of a launch run: here, on a Ray cluster or as jobs of Slurm, and with which cores and GPUs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hpo.errors import Problem
from hpo.launcher.options import LaunchOptions
from hpo.launcher.processes import WorkerGroup
from hpo.runs.resources import available_cores, check_gpus, thread_environment

# Starts a group of workers: (arguments of `hpo worker`, environment of each worker, folder of the logs).
GroupFactory = Callable[[Sequence[str], Sequence[Mapping[str, str]], Path], WorkerGroup]


def resolve_workers(options: LaunchOptions) -> tuple[list[dict[str, str]], GroupFactory]:
    """Return the environment of each worker, and a function that starts them.

    Raises:
        Problem: an option is not valid for this placement.
        WorkFailed: the cluster does not answer.
    """
    _check_placement(options)
    n_workers = max(1, options.workers)
    if options.on == "slurm":
        from hpo.launcher.slurm_group import SlurmWorkerGroup
        from hpo.launcher.slurm_options import check_slurm, parse_slurm_options

        sbatch_options = parse_slurm_options(options.slurm)
        check_slurm(options.storage, sbatch_options, n_workers)
        return [{}] * n_workers, functools.partial(SlurmWorkerGroup, sbatch_options)
    if options.on == "ray":
        from hpo.launcher.ray_cluster import CPUS, RayWorkerGroup, check_ray_options, join_cluster

        check_ray_options(options.storage, options.gpus_per_worker)
        join_cluster(options.address, options.storage, options.gpus_per_worker)
        return [thread_environment(CPUS)] * n_workers, functools.partial(RayWorkerGroup, options.gpus_per_worker)
    return worker_environments(options.workers, options.gpus, options.per_gpu), WorkerGroup


def _check_placement(options: LaunchOptions) -> None:
    """Check that no option belongs to another placement.

    Raises:
        Problem: one does.
    """
    given: dict[str, dict[str, object]] = {
        "local": {"--gpus": options.gpus, "--per-gpu": options.per_gpu > 1},
        "ray": {"--address": options.address, "--gpus-per-worker": options.gpus_per_worker},
        "slurm": {"--slurm": options.slurm},
    }
    remedies = {"ray": "; use --gpus-per-worker", "slurm": "; use an option of sbatch, such as --slurm gres=gpu:1"}
    for place, values in given.items():
        for name in (name for name, value in values.items() if value and place != options.on):
            if place == "local":
                raise Problem(f"{name}: must be left out with --on {options.on}{remedies[options.on]}")
            remedy = remedies["slurm"] if options.on == "slurm" else ""
            raise Problem(f"{name}: must be left out without --on {place}{remedy}")


def worker_environments(n_workers: int, gpus: Sequence[str], per_gpu: int) -> list[dict[str, str]]:
    """Return the environment of each worker: its share of the cores, and one GPU.

    The variables are set before a worker imports torch, which reads the number of threads only once.

    n_workers: 0: one worker, or `per_gpu` workers on each GPU.

    Raises:
        Problem: this machine does not have a requested GPU, or the GPUs have too few places for the workers.
    """
    n = n_workers or (len(gpus) * per_gpu if gpus else 1)
    check_gpus(gpus)
    if gpus and n > len(gpus) * per_gpu:
        raise Problem(f"--workers: must be at most {len(gpus) * per_gpu}, {per_gpu} on each of the GPUs, got {n}")
    threads = thread_environment(max(1, available_cores() // n))
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[i // per_gpu % len(gpus)]} if gpus else {}) for i in range(n)]

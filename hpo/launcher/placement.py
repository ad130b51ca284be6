"""Where the workers of a launch run: on this machine or on a Ray cluster, and with which share of cores and GPUs."""

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
        WorkFailed: the Ray cluster does not answer.
    """
    # Ray takes seconds to import, so it is imported only for --on ray.
    from hpo.launcher.ray_cluster import CPUS, RayWorkerGroup, check_ray_options, join_cluster

    local_options = {"--gpus": options.gpus, "--per-gpu": options.per_gpu > 1}
    ray_options = {"--address": options.address, "--gpus-per-worker": options.gpus_per_worker}
    if options.on == "local":
        if invalid := [name for name, value in ray_options.items() if value]:
            raise Problem(f"{invalid[0]}: must be left out without --on ray")
        return worker_environments(options.workers, options.gpus, options.per_gpu), WorkerGroup
    if invalid := [name for name, value in local_options.items() if value]:
        raise Problem(f"{invalid[0]}: must be left out with --on ray; use --gpus-per-worker")
    n_workers = max(1, options.workers)
    check_ray_options(options.storage, options.gpus_per_worker)
    join_cluster(options.address, options.storage, options.gpus_per_worker)
    return [thread_environment(CPUS)] * n_workers, functools.partial(RayWorkerGroup, options.gpus_per_worker)


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

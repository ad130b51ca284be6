"""A soak test: run one study after another on both storages, with random faults, and check each study.

Run it with `make chaos MINUTES=30`. `--seed` repeats the same sequence of faults, at other times.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in a worker: the number of threads changes the last bits of a loss

from hpo.storage.store import open_store
from tests.faults import files, storages
from tests.faults.scene import GPT, NAME, PLANTED, Scene
from tests.support.disk import small_disk
from tests.support.postgres import Postgres

WORKERS = 4
HALVES = {"pruner": {"name": "asha", "factor": 2}}  # trials pause at rungs 1 and 2
STUDIES = ({**PLANTED, **HALVES}, GPT, {**GPT, **HALVES}, PLANTED)
STUDY_S = 60.0  # seconds for which faults occur in one study; afterwards the study runs to its end


class Soak:
    """Runs studies with faults, and counts faults, trials and reasons of ends."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.studies: Counter[str] = Counter()
        self.trials = self.attempts = 0

    def study(self, folder: Path, server: Postgres | None, keys: Mapping[str, Any]) -> None:
        """Run one study with faults for a while, run it to its end, and check it."""
        url = f"sqlite:///{folder}/hpo.db"
        if server:
            url = server.url(server.database("with_tables"))
        scene = Scene(folder, url, server)
        scene.study(keys, trials=60)
        try:
            with scene.witness, disk(scene) as small:
                self._disturb(scene, small)
                self._settle(scene)
                scene.check()
        finally:
            scene.close()
        self._count(scene)

    def _disturb(self, scene: Scene, small: Path | None) -> None:
        scene.launch(WORKERS)
        # The first GPT measures whether to compile, for a minute on a busy machine.
        scene.until(lambda: scene.rows("SELECT 1 FROM hpo_slot WHERE state = 'leased'"), 300)
        until = time.monotonic() + STUDY_S
        while time.monotonic() < until and not ended(scene):
            time.sleep(self.draw.uniform(0.5, 4.0))
            name, fault = self.draw.choice(FAULTS)
            if fault(self, scene, small):
                self.faults[name] += 1
            self._relaunch(scene)

    def _relaunch(self, scene: Scene) -> None:
        """Launch the study again if no launcher runs."""
        if scene.processes[-1].poll() is not None and not ended(scene):
            scene.launch(WORKERS)

    def _settle(self, scene: Scene) -> None:
        """Launch until the study is finished, because a launch fails if its workers were killed too often."""
        for _ in range(5):
            if scene.processes[-1].poll() is not None and ended(scene):
                break
            if scene.processes[-1].poll() is not None:
                scene.launch(WORKERS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                scene.processes[-1].wait(120)
        scene.until(lambda: not scene.pids())
        for process in scene.processes:
            assert "Traceback" not in scene.said(process), scene.said(process)

    def _count(self, scene: Scene) -> None:
        self.studies[scene.kind + (", asha" if scene.pruner["name"] == "asha" else "")] += 1
        self.trials += scene.trials
        self.attempts += scene.ends.total()
        self.ends.update(scene.ends)

    def summary(self, seed: int, minutes: float, result: str) -> str:
        """Return the table for docs/reliability.md."""
        rows = [
            ("seed", str(seed)),
            ("minutes", f"{minutes:.1f}"),
            ("studies", ", ".join(f"{n} on {kind}" for kind, n in self.studies.items())),
            ("trials", f"{self.trials}, in {self.attempts} attempts"),
            ("faults", f"{self.faults.total()}: " + ", ".join(f"{n} {name}" for name, n in self.faults.most_common())),
            ("ends of attempts", ", ".join(f"{n} `{reason}`" for reason, n in self.ends.most_common())),
            ("result", result),
        ]
        return "\n".join(f"| {key} | {value} |" for key, value in rows)


def disk(scene: Scene) -> contextlib.AbstractContextManager[Path | None]:
    """Put the runs of a scene on a small disk, if this process may mount one."""
    if os.geteuid() != 0:
        return contextlib.nullcontext()
    scene.out = scene.folder / "small"
    return small_disk(scene.out, "16m")


def ended(scene: Scene) -> bool:
    counted = scene.rows("SELECT count(*) FROM hpo_slot")
    return bool(counted) and counted[0][0] > 0 and scene.rows("SELECT 1 FROM hpo_slot WHERE state <> 'done'") == []


def kill(soak: Soak, scene: Scene, _: Path | None) -> bool:
    return bool(signalled(soak, scene, signal.SIGKILL))


def terminate(soak: Soak, scene: Scene, _: Path | None) -> bool:
    return bool(signalled(soak, scene, signal.SIGTERM))


def freeze(soak: Soak, scene: Scene, _: Path | None) -> bool:
    pid = signalled(soak, scene, signal.SIGSTOP)
    time.sleep(soak.draw.uniform(0.5, 5.0))
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return bool(pid)


def signalled(soak: Soak, scene: Scene, number: signal.Signals) -> int:
    """Send a signal to one worker; return its process id, 0 if there is no worker."""
    pids = scene.pids()
    if not pids:
        return 0
    pid = soak.draw.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return pid


def kill_launcher(soak: Soak, scene: Scene, _: Path | None) -> bool:
    scene.processes[-1].kill()
    scene.processes[-1].wait()
    return True


def kill_all(soak: Soak, scene: Scene, _: Path | None) -> bool:
    for pid in [scene.processes[-1].pid, *scene.pids()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    scene.processes[-1].wait()
    return True


def interrupt(soak: Soak, scene: Scene, _: Path | None) -> bool:
    for _time in range(soak.draw.choice((1, 2))):
        scene.processes[-1].send_signal(signal.SIGINT)
        time.sleep(0.3)
    with contextlib.suppress(subprocess.TimeoutExpired):
        scene.processes[-1].wait(30)
    return True


def restart(soak: Soak, scene: Scene, _: Path | None) -> bool:
    if scene.server is None:
        return False
    scene.server.stop(soak.draw.choice((signal.SIGINT, signal.SIGQUIT)))
    time.sleep(soak.draw.uniform(0.0, 8.0))
    scene.server.start()
    return True


def cut(soak: Soak, scene: Scene, _: Path | None) -> bool:
    if scene.server is None:
        return False
    for _time in range(20):
        scene.server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{scene.database}'")
        time.sleep(0.05)
    return True


def lock(soak: Soak, scene: Scene, _: Path | None) -> bool:
    with storages.locked(scene):
        time.sleep(soak.draw.uniform(1.0, 8.0))
    return True


def fill(soak: Soak, scene: Scene, small: Path | None) -> bool:
    if small is None:
        return False
    ballast = files.fill(small)
    time.sleep(soak.draw.uniform(1.0, 6.0))
    ballast.unlink()
    return True


def garble(soak: Soak, scene: Scene, _: Path | None) -> bool:
    files = list(scene.out.glob(f"{NAME}/trials/*/*/state.safetensors"))
    if not files:
        return False
    with contextlib.suppress(OSError):
        os.truncate(soak.draw.choice(files), soak.draw.randrange(1000))
    return True


FaultFunction = Callable[[Soak, Scene, Path | None], bool]
FAULTS: list[tuple[str, FaultFunction]] = [
    ("worker killed", kill),
    ("worker killed", kill),
    ("worker terminated", terminate),
    ("worker frozen", freeze),
    ("launcher killed", kill_launcher),
    ("launcher and workers killed", kill_all),
    ("launcher interrupted", interrupt),
    ("server restarted", restart),
    ("connections cut", cut),
    ("storage locked", lock),
    ("disk full", fill),
    ("checkpoint truncated", garble),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    soak, began, result = Soak(arguments.seed), time.monotonic(), "failed"
    server = Postgres()
    with tempfile.TemporaryDirectory(prefix="hpo-chaos-", ignore_cleanup_errors=True) as name:
        os.environ["HPO_CACHE"] = name
        try:
            server.start()
            server.sql("CREATE DATABASE with_tables")
            open_store(server.url("with_tables"), create=True).close()
            n = 0
            while time.monotonic() - began < 60 * arguments.minutes:
                folder = Path(name) / f"study-{n}"
                folder.mkdir()
                soak.study(folder, server if n % 2 else None, STUDIES[n // 2 % len(STUDIES)])
                n += 1
                print(f"study {n}: {soak.trials} trials, {soak.faults.total()} faults, all checks passed", flush=True)
            result = "all checks passed after every study"
        finally:
            server.remove()
            print(soak.summary(arguments.seed, (time.monotonic() - began) / 60, result))


if __name__ == "__main__":
    main()

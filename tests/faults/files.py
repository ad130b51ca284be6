"""Faults of disks and files, and of training code."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.processes import halve
from tests.faults.scene import GPT, NAME, PLANTED, Scene
from tests.support.disk import small_disk


def fill(folder: Path) -> Path:
    """Fill a disk; return the file that fills it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def fill_checkpoints(scene: Scene) -> None:
    with small_disk(scene.folder / "small", "8m") as disk:
        scene.out = disk
        scene.launch()
        scene.wait_for_values()
        ballast = fill(disk)
        scene.until(lambda: "quarantined" in scene.event_types())
        ballast.unlink()
        scene.finish()
        shutil.copytree(disk / NAME, scene.folder / "runs" / NAME)
    scene.out = scene.folder / "runs"


def fill_database(scene: Scene) -> None:
    scene.study(PLANTED, trials=10)
    with disk_of_database(scene) as disk:
        scene.launch()
        scene.wait_for_values()
        ballast = fill(disk)
        time.sleep(5.0)
        ballast.unlink()
        scene.finish()
        scene.check()


@contextmanager
def disk_of_database(scene: Scene) -> Iterator[Path]:
    """Put the scene's storage on a small disk."""
    if scene.server is None:
        with small_disk(scene.folder / "small", "2m") as disk:
            scene.url = f"sqlite:///{disk}/hpo.db"
            yield disk
        return
    name = scene.database
    # Beside the files of the server, because its user may read that folder.
    with small_disk(scene.server.folder / "small", "32m") as disk:
        space = disk / "space"
        space.mkdir()
        shutil.chown(space, "nobody")
        scene.server.sql(f"CREATE TABLESPACE small LOCATION '{space}'")
        scene.server.sql(f"ALTER DATABASE {name} SET TABLESPACE small")
        try:
            yield disk
        finally:
            scene.witness.stop()
            scene.server.sql(f"ALTER DATABASE {name} SET TABLESPACE pg_default")
            scene.server.sql("DROP TABLESPACE small")


def fill_prepared_data(scene: Scene) -> None:
    scene.study(GPT, trials=2)
    with small_disk(scene.folder / "cache", "8m") as disk:
        ballast = fill(disk)
        assert f"no space left on device preparing text under {disk}" in scene.end(
            scene.launch(HPO_CACHE=str(disk)), 1, 30
        )
        assert scene.rows("SELECT 1 FROM trials") == []
        ballast.unlink()
        scene.end(scene.launch(1, HPO_CACHE=str(disk)))


def diverge(scene: Scene) -> None:
    scene.study(PLANTED, base={"nan_above": 0.7, "pause": 0.1}, baseline=[{"x": 0.9}, {"x": 0.2}, {"x": 0.8}])
    scene.end(scene.launch())


def run_out_of_memory(scene: Scene) -> None:
    """Train a network whose weights exceed a worker's memory; the other trials are small."""
    scene.study(GPT, trials=3, baseline=[{}, {"model.n_embd": 2048}])
    scene.end(scene.launch(1, FAULT="memory"))
    assert len(scene.rows("SELECT 1 FROM trials WHERE CAST(state AS VARCHAR) = 'PRUNED'")) == 1


def garble_checkpoints(scene: Scene) -> None:
    scene.study(GPT, trials=3)
    halve(scene, 1)
    files = list(scene.out.glob(f"{NAME}/trials/*/*/state.safetensors"))
    assert files
    for n, file in enumerate(files):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] if n % 2 else bytes(b ^ 0xFF for b in data))


def flip_bits(scene: Scene) -> None:
    """Interrupt the study, and change eight bits in the tensors of each checkpoint."""
    scene.study(GPT, trials=3)
    halve(scene, 1)
    files = list(scene.out.glob(f"{NAME}/trials/*/*/state.safetensors"))
    assert files
    for file in files:
        data = bytearray(file.read_bytes())
        for n in range(8):
            data[-100 - 37 * n] ^= 1 << n
        file.write_bytes(data)


def damage_metrics(scene: Scene) -> None:
    """Interrupt the study, and damage the metrics of each interrupted trial."""
    halve(scene)
    numbers = [n for (n,) in scene.rows("SELECT number FROM trials WHERE CAST(state AS VARCHAR) = 'WAITING'")]
    assert numbers
    for number in numbers:
        file = scene.out / NAME / "trials" / f"{number:04d}" / "metrics.jsonl"
        file.write_bytes(b"5\n\xff" + file.read_bytes()[:-5])


def remove_run_folder(scene: Scene) -> None:
    """Remove the run folder; then restore it, because the checks compare its files."""
    launcher = scene.launch()
    scene.wait_for_values()
    kept = (scene.out / NAME).rename(scene.folder / "kept")
    assert "the run folder was removed while the study ran" in scene.end(launcher, 1, 30)
    shutil.rmtree(scene.out / NAME, ignore_errors=True)  # what a worker has still written
    kept.rename(scene.out / NAME)


def raise_in_training(scene: Scene) -> None:
    """Let three of five configurations raise what looks like a full disk, a signal and an exit."""
    raising = [{"x": 0.2, "raises": name} for name in ("PermissionError", "SystemExit", "KeyboardInterrupt")]
    scene.study(PLANTED, trials=5, baseline=[{"x": 0.1}, *raising], base={"pause": 0.1})
    scene.end(scene.launch(), 0)
    ended = scene.rows("SELECT CAST(state AS VARCHAR) FROM trials")
    assert sorted(state for (state,) in ended) == ["COMPLETE"] * 2 + ["FAIL"] * 3


def block_trial_folder(scene: Scene) -> None:
    """Put a file in the place of one trial's folder, as another owner of the folder would refuse every write."""
    scene.study(PLANTED, trials=4, base={"pause": 0.1})
    assert "trials were given up" in scene.end(scene.launch(1, FAULT="blocked"), 1)

"""Workers as jobs of a Slurm cluster, whose controller and two nodes run on this machine."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.storage.engine import open_readonly
from tests.support.command import environment, until
from tests.support.planted import planted_study as planted
from tests.support.postgres import Postgres
from tests.support.slurm import MISSING, Slurm, missing_programs

pytestmark = [pytest.mark.integrations, pytest.mark.skipif(bool(missing_programs()), reason=MISSING)]

# A script that saves its state on SIGTERM, as scripts for clusters do
SCRIPT = """
import os, pathlib, signal, sys, time
checkpoint = pathlib.Path(os.environ["HPO_DIR"]) / "checkpoint"
start = int(checkpoint.read_text()) if checkpoint.exists() else 0
print("starts at", start, flush=True)

def save(*_):
    checkpoint.write_text(str(step))
    sys.exit(0)

step = start
signal.signal(signal.SIGTERM, save)
for step in range(start + 1, 41):
    time.sleep(0.1)
    print(f"step {step}: val_loss {float(sys.argv[1]) + 1 / step}", flush=True)
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    cluster = Slurm()
    try:
        yield cluster.start()
    finally:
        cluster.remove()


class Launch:
    """A launch on the cluster in a folder. Its output goes to launch.log."""

    def __init__(self, tcp_server: Postgres, slurm: Slurm, folder: Path, *options: str, **env: str) -> None:
        self.url, self.folder, self.log = tcp_server.url(tcp_server.database(), tcp=True), folder, folder / "launch.log"
        self.slurm, self.options, self.env = slurm, options, env
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "hpo", "launch", "--on", "slurm", "--plain", *self.options]
        env = environment(HPO_STORAGE=self.url, HPO_LEASE_S="10", **self.slurm.env, **self.env)
        with self.log.open("a") as stderr:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    def said(self) -> str:
        return self.log.read_text()

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Return the exit status and the standard output, once no job of the cluster is left."""
        try:
            stdout, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(self.said()) from None
        assert until(lambda: not self.slurm.jobs("PENDING", "RUNNING", "COMPLETING"), 30), self.slurm.run("squeue")
        return self.process.returncode, stdout

    def snapshot(self, name: str = "planted") -> Snapshot:
        with open_readonly(self.url) as reader:
            return read_snapshot(reader, name)

    def numbers(self) -> tuple[int, ...]:
        n = trial_counts(self.snapshot())
        return n["complete"], n["pruned"], n["failed"], n["running"], n["waiting"]


def study(folder: Path, trials: int, pause: float, rungs: int = 4) -> str:
    """Write a study without pruning; return its path."""
    base = {"pause": pause, "rungs": rungs}
    return str(planted(folder, base=base, rungs=rungs, budget={"trials": trials}, pruner={"name": "none"}))


REFUSED = "--slurm: sbatch refuses the jobs: "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--slurm partition=nope", REFUSED + "invalid partition specified: nope; Invalid partition name specified"),
        ("--slurm account=spent", REFUSED + "account spent has no hours left; Invalid account or account/partition"),
        ("--slurm time=60", REFUSED + "Requested time limit is invalid (missing or exceeds some limit)"),
        ("--slurm partitions=main", REFUSED + "unrecognized option '--partitions=main'"),
        (
            "--workers 1002",
            "--workers: must be at most MaxArraySize of the cluster, which `scontrol show config` prints",
        ),
    ],
)
def test_what_sbatch_refuses_is_refused_before_the_study_is_stored(
    options: str, message: str, tcp_server: Postgres, slurm: Slurm, tmp_path: Path
) -> None:
    launch = Launch(tcp_server, slurm, tmp_path, "--study", study(tmp_path, 1, 0.0), *options.split())
    assert launch.end(30)[0] == 2
    assert launch.said().splitlines()[-1].startswith(f"hpo: {message}")
    assert not (tmp_path / "runs").exists()


def test_a_study_ends_complete_though_a_node_and_a_worker_are_lost(
    tcp_server: Postgres, slurm: Slurm, tmp_path: Path
) -> None:
    path = study(tmp_path, 40, 0.15)
    launch = Launch(tcp_server, slurm, tmp_path, "--study", path, "--workers", "4", "--slurm", "comment=a b'c")
    assert until(lambda: len(set(re.findall(r"(worker \d): trial \d+: complete", launch.said()))) == 4), launch.said()
    on = re.findall(r"(worker \d): job \d+_\d runs on (n\d)", launch.said())
    assert sorted(node for _, node in on) == ["n1", "n1", "n2", "n2"]
    shown = slurm.run("scontrol", "show", "job", "-dd") + subprocess.run(["ps", "ax", "-o", "args"], **TEXT).stdout
    assert "Comment=a b'c" in shown
    assert tcp_server.password not in shown
    killed = next(pid for pid in slurm.processes("n1") if b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(killed, signal.SIGKILL)
    slurm.lose("n2")
    try:
        status, stdout = launch.end()
    finally:
        slurm.restore("n2")
    said = launch.said()
    assert status == 0, said
    assert stdout.startswith("best: trial")  # and no line of submitit
    assert len(re.findall(r"worker \d: ended with signal 9; it is restarted", said)) >= 1
    assert re.search(r"worker \d: job \d+ runs on n1", said)  # another job for the killed worker
    assert launch.numbers() == (40, 0, 0, 0, 0)
    assert {path.name for path in tmp_path.glob("runs/planted/worker-*.log")} == {
        f"worker-{n}.log" for n in range(1, 5)
    }
    for file in [launch.log, *tmp_path.rglob("*"), *slurm.folder.glob("*")]:
        if file.is_file():
            assert tcp_server.password.encode() not in file.read_bytes(), file
    assert until(lambda: slurm.states() == ["idle", "idle"], 60)


TEXT: dict[str, Any] = {"capture_output": True, "text": True}


def test_ctrl_c_ends_running_and_pending_jobs(tcp_server: Postgres, slurm: Slurm, tmp_path: Path) -> None:
    path = study(tmp_path, 400, 0.3)
    launch = Launch(tcp_server, slurm, tmp_path, "--study", path, "--workers", "5", "--slurm", "time=5")
    pending = "4 of 5 workers have started; 1 job is pending (Resources)"
    assert until(lambda: pending in launch.said() and ": complete" in launch.said()), launch.said()
    hpo = [sys.executable, "-m", "hpo"]
    env = environment(HPO_STORAGE=launch.url, **slurm.env)
    for command in ("status", "doctor"):
        shown = subprocess.run([*hpo, command, "--study", "planted"], env=env, cwd=tmp_path, **TEXT).stdout
        assert pending in shown, command
    python = f"import hpo; print(hpo.Study.load('planted', storage={launch.url!r}).status()['slurm'])"
    assert subprocess.run([sys.executable, "-c", python], env=env, **TEXT).stdout.strip() == pending
    launch.process.send_signal(signal.SIGINT)
    status, _ = launch.end()
    assert status == 130, launch.said()
    assert "--on slurm --slurm time=5" in launch.said()  # in the command that resumes the study
    complete, *others, running, waiting = launch.numbers()
    assert (*others, running, complete + waiting) == (0, 0, 0, 400)
    assert {event.event_type for event in launch.snapshot().events} & {"lost", "signal"} == set()


def test_job_whose_time_is_over_is_requeued_and_resumes_its_trial(
    tcp_server: Postgres, slurm: Slurm, tmp_path: Path
) -> None:
    path = study(tmp_path, 1, 0.5, rungs=200)
    launch = Launch(tcp_server, slurm, tmp_path, "--study", path, "--slurm", "time=2")  # SIGUSR1 after 30 to 60 s
    assert until(lambda: "is requeued" in launch.said(), 90), launch.said()
    said = launch.said()
    rung = int(re.findall(r"rung (\d+)/200", said)[-1])
    assert f"trial 0: requeued after rung {rung} (preempted)" in said
    assert "timeout" not in said
    launch.process.kill()  # the job needs no launcher
    launch.process.communicate()
    (job,) = slurm.jobs("PENDING")
    assert job
    (tmp_path / "curves.py").write_text((tmp_path / "curves.py").read_text().replace("config.pause", "0.02"))
    launch.start()  # a second launch says that there is a job, and helps it
    note = (
        "note: jobs of an earlier launch serve this study too (0 of 1 workers have started; 1 job is pending (BeginTi"
    )
    assert until(lambda: note in launch.said()), launch.said()
    launch.process.send_signal(signal.SIGINT)
    launch.process.communicate(timeout=60)
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait for two minutes
    assert until(lambda: launch.numbers() == (1, 0, 0, 0, 0), 60), slurm.run("squeue")
    events = [event.event_type for event in launch.snapshot().events]
    assert "preempted" in events
    assert "lost" not in events
    assert until(lambda: not slurm.jobs("PENDING", "RUNNING", "COMPLETING"), 30)


def test_preempted_job_releases_its_trial_and_continues_later(
    tcp_server: Postgres, slurm: Slurm, tmp_path: Path
) -> None:
    launch = Launch(tcp_server, slurm, tmp_path, "--study", study(tmp_path, 1, 1.0, rungs=20))
    assert until(lambda: "trial 0: rung 2/20" in launch.said()), launch.said()
    (job,) = slurm.jobs("RUNNING")
    slurm.run("sbatch", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 1")
    assert until(lambda: "is requeued" in launch.said()), launch.said()
    assert re.search(r"trial 0: requeued after rung \d+ \(preempted\)", launch.said())
    assert until(lambda: slurm.jobs("PENDING", "RUNNING", "COMPLETING") == [job])
    assert until(lambda: (slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now"), slurm.jobs("RUNNING"))[1])
    assert launch.end()[0] == 0, launch.said()
    assert launch.numbers() == (1, 0, 0, 0, 0)
    assert re.search(r"trial 0: started.*, attempt 2", launch.said())


def test_scancel_gives_the_trial_of_a_command_back(tcp_server: Postgres, slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    tree = {
        "command": [sys.executable, "train.py", "{x}"],
        "metric": {"pattern": r"step (?P<step>\d+): val_loss (?P<val_loss>\S+)"},
        "steps": {"rungs": 4, "last": 40},
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "pruner": "none",
        "budget": {"trials": 3},
    }
    (tmp_path / "scripts.yaml").write_text(dump_yaml(tree))
    launch = Launch(tcp_server, slurm, tmp_path, "--study", "scripts.yaml", "--workers", "2")
    assert until(lambda: re.search(r"worker 1: trial (\d): rung 1/4", launch.said()))
    (trial,) = re.findall(r"worker 1: trial (\d): rung 1/4", launch.said())
    (job,) = re.findall(r"worker 1: job (\S+) runs", launch.said())
    slurm.run("scancel", job)
    status, _ = launch.end()
    said = launch.said()
    assert status == 0, said
    assert re.search(rf"worker 1: trial {trial}: requeued after rung \d \(preempted\)", said)
    assert re.search(rf"worker 2: trial {trial}: started, attempt 2", said)
    snapshot = launch.snapshot("scripts")
    assert trial_counts(snapshot)["complete"] == 3
    assert {event.event_type for event in snapshot.events} & {"lost", "signal", "error"} == set()
    logs = [path.read_text() for path in (tmp_path / f"runs/scripts/trials/000{trial}").glob("output*.log")]
    resumed = re.findall(r"starts at (\d+)", "".join(logs))
    assert int(resumed[0]) == 0
    assert int(resumed[1]) >= 10


def test_rest_of_a_paused_study_is_left_to_the_next_launch(tcp_server: Postgres, slurm: Slurm, tmp_path: Path) -> None:
    launch = Launch(tcp_server, slurm, tmp_path, "--study", study(tmp_path, 8, 0.2))
    assert until(lambda: ": complete" in launch.said()), launch.said()
    env = environment(HPO_STORAGE=launch.url)
    pause = [sys.executable, "-m", "hpo", "pause", "--study", "planted"]
    subprocess.run(pause, env=env, cwd=tmp_path, check=True, **TEXT)
    assert launch.end()[0] == 0
    assert (
        "planted is paused, and its jobs have ended; `hpo resume` and then this command continue it: " in launch.said()
    )
    complete, *others, waiting = launch.numbers()
    assert (*others, complete + waiting) == (0, 0, 0, 8)
    assert waiting > 0

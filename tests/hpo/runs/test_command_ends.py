"""How a command ends: by itself, at a signal, or with its worker, and that no process of it is left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpo.runs import command, command_process
from hpo.runs.command import CommandRuns
from hpo.runs.command_files import TrialPlace
from hpo.runs.guardian import __file__ as guardian
from tests.support.command import ROOT, until
from tests.support.commands import all_reports, config, plan, processes_with


def test_command_that_trains_on_after_its_last_step_is_noticed(tmp_path: Path) -> None:
    script = (
        "import time\nfor step in range(10, 60, 10): print(f'step {step}: train loss 1 val loss 2')\ntime.sleep(60)"
    )
    start = time.monotonic()
    rows, further = all_reports(plan(script), tmp_path)
    assert (len(rows), further) == (4, 5)
    assert time.monotonic() - start < 20


def test_command_that_does_not_end_after_its_last_value_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "FINISH_S", 1.0)
    script = "import time\nprint('step 40: train loss 1 val loss 2')\ntime.sleep(600)"
    with pytest.raises(TimeoutError, match="it did not end in 1 s"):
        all_reports(plan(script), tmp_path)
    assert processes_with(plan(script).command[1]) == []


# Every way in which a script can leave processes behind
FORKS = """
import os, signal, subprocess, sys, time
MARK = sys.argv[1]
child = "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-S", "-c", child, MARK])
subprocess.Popen([sys.executable, "-S", "-c", child, MARK], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:  # a daemon
        os.execv(sys.executable, [sys.executable, "-S", "-c", child, MARK])
    os._exit(0)
time.sleep(0.3)
print("step 10: train loss 1 val loss 2")
{end}
"""
ENDS = {
    "exits": "",
    "fails": "sys.exit(1)",
    "hangs": "time.sleep(600)",
    "ignores SIGTERM": "signal.signal(15, signal.SIG_IGN); time.sleep(600)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="processes in other sessions are found by /proc")
@pytest.mark.parametrize("end", ENDS)
def test_no_process_of_a_command_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(command_process, "GRACE_S", 0.3)
    monkeypatch.setattr(command_process.CommandProcess.terminate, "__defaults__", (0.3,))
    mark = f"mark-{os.getpid()}-{end}"
    given = plan(FORKS.replace("{end}", ENDS[end]), words=[mark])
    runs = CommandRuns(given, [config(given=given)])
    runs.assign(0, TrialPlace("planted", 0, 1, tmp_path))
    reports = iter(runs)
    while not (report := next(reports)[1]):
        pass
    assert report[0]["val_loss"] == 2.0
    assert len(processes_with(mark)) >= 4 or end in ("exits", "fails")
    runs.stop(0)
    assert processes_with(mark) == []


@pytest.mark.parametrize("victim", ["worker", "guardian"])
def test_no_process_survives_kill_9_of_the_worker_or_of_the_guardian(tmp_path: Path, victim: str) -> None:
    mark = f"mark-{os.getpid()}-{victim}"
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.support.commands import all_reports, plan
script = {FORKS.replace("{end}", "time.sleep(600)") if victim == "worker" else "import time; time.sleep(600)"!r}
all_reports(plan(script, words=[{mark!r}]), Path({str(tmp_path)!r}))
"""
    n = 5 if victim == "worker" else 2
    with subprocess.Popen([sys.executable, "-c", program]) as worker, contextlib.ExitStack() as ends:
        ends.callback(worker.kill)  # also where an assertion fails, which would wait for the script otherwise
        assert until(lambda: len(processes_with(mark)) >= n)
        guardians = [
            pid for pid in processes_with(mark) if guardian.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(guardians) == 1
        os.kill(worker.pid if victim == "worker" else guardians[0], signal.SIGKILL)
        assert until(lambda: not processes_with(mark), 10)


def test_script_saves_its_state_on_sigterm_before_it_is_killed(tmp_path: Path) -> None:
    script = """
import os, signal, sys, time
def save(*_):
    time.sleep(0.3)
    open(os.path.join(os.environ["HPO_DIR"], "checkpoint"), "w").write("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("step 10: train loss 1 val loss 2")
time.sleep(600)
"""
    given = plan(script)
    runs = CommandRuns(given, [config()])
    runs.assign(0, TrialPlace("planted", 0, 1, tmp_path))
    reports = iter(runs)
    while not next(reports)[1]:
        pass
    runs.close()
    assert (tmp_path / "files" / "checkpoint").read_text() == "saved"


def test_rungs_reported_before_a_stop_are_not_lost(tmp_path: Path) -> None:
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
sys.stdout.write("".join(f"step {step}: train loss 1 val loss {step}\\n" for step in (10, 20, 30, 40)))
time.sleep(600)
"""
    runs = CommandRuns(plan(script), [config()])
    runs.assign(0, TrialPlace("planted", 0, 1, tmp_path))
    reports = iter(runs)
    while not (first := next(reports)[1]):
        pass
    assert [first[0]["val_loss"], *(row["val_loss"] for _, row in runs.rest())] == [10, 20, 30, 40]
    assert runs.finish(0) is None
    runs.close()


@pytest.mark.parametrize("code", [0, 3])
def test_last_value_before_a_stop_is_not_the_result_of_a_run_without_steps(tmp_path: Path, code: int) -> None:
    script = f"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
print("val loss 3", flush=True)
time.sleep(600)
"""
    runs = CommandRuns(plan(script, metric={"pattern": r"val loss (?P<val_loss>\S+)"}, steps=None), [config()])
    runs.assign(0, TrialPlace("planted", 0, 1, tmp_path))
    assert next(iter(runs)) == (0, {})
    assert list(runs.rest()) == []
    runs.close()


def test_script_that_asks_should_stop_ends_by_itself(tmp_path: Path) -> None:
    script = """
import hpo, time
trial = hpo.current_trial()
trial.should_stop()
trial.report(10, val_loss=1)
while not trial.should_stop():
    time.sleep(0.01)
print("ended by itself")
"""
    given = plan(script, metric=None, env={"PYTHONPATH": str(ROOT)})
    runs = CommandRuns(given, [config()])
    runs.assign(0, TrialPlace("planted", 0, 1, tmp_path))
    reports = iter(runs)
    while not next(reports)[1]:
        pass
    runs.stop(0)
    assert (tmp_path / "output.log").read_text() == "ended by itself\n"

"""Commands as runs: what a script receives, and what counts as a rung."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from hpo.config.yaml import parse_yaml
from hpo.errors import CommandFailed
from hpo.runs import command_process
from hpo.runs.command import CommandRuns
from hpo.runs.command_files import TrialPlace
from hpo.runs.command_reports import FileReader
from model.errors import is_device_fault, is_out_of_memory
from tests.support.command import ROOT
from tests.support.commands import all_reports, config, plan

LINES = """
import sys
for step in range(0, 41, 5):
    print(f"step {step}: train loss 3.5, val loss {100 - step}")
"""


def test_first_reported_step_at_or_past_a_mark_is_the_value_of_the_rung(tmp_path: Path) -> None:
    script = "for step in (0, 7, 13, 35, 40): print(f'step {step}: train loss {step}.5 val loss {100 - step}')"
    rows, failure = all_reports(plan(script), tmp_path)
    assert failure is None
    assert [(row["rung"], row["step"], row["val_loss"], row["train_loss"]) for row in rows] == [
        (1, 13, 87, 13.5),
        (2, 35, 65, 35.5),
        (3, 35, 65, 35.5),
        (4, 40, 60, 40.5),
    ]
    assert (tmp_path / "output.log").read_text().count("val loss") == 5


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e-3", "2.31,", "4"])
def test_patterns_read_numbers_of_every_form(tmp_path: Path, text: str) -> None:
    (row,), failure = all_reports(
        plan(f"print('step 40: train loss 1 val loss {text}')", steps={"last": 40, "rungs": 1}), tmp_path
    )
    assert failure is None
    assert repr(row["val_loss"]) == repr(float(text.rstrip(",")))


def test_steps_out_of_order_twice_and_without_an_objective_count_once(tmp_path: Path) -> None:
    script = "for step in (10, 10, 5, 30, 20, 30, 40): print(f'step {step}: train loss 1 val loss {step / 10}')"
    rows, failure = all_reports(plan(script), tmp_path)
    assert [(row["rung"], row["val_loss"]) for row in rows] == [(1, 1.0), (2, 3.0), (3, 3.0), (4, 4.0)]
    assert failure is None


def test_metrics_of_several_patterns_belong_to_the_last_step(tmp_path: Path) -> None:
    script = "for epoch in (1, 2): print('epoch', epoch); print('accuracy: 5%'); print(f'val {epoch}.5'); print()"
    given = plan(
        script,
        metric={"pattern": [r"^epoch (?P<step>\d+)", r"^accuracy: (?P<acc>\S+)", r"^val (?P<val_loss>\S+)"]},
        steps={"last": 2},
    )
    rows, _ = all_reports(given, tmp_path)
    assert [(row["rung"], row["step"], row["val_loss"], row["acc"]) for row in rows] == [(1, 1, 1.5, 5), (2, 2, 2.5, 5)]


def test_without_steps_the_last_value_counts_if_the_command_succeeds(tmp_path: Path) -> None:
    script = "print('val loss 3'); print('val loss 2'); raise SystemExit({code})"
    given = {"metric": {"pattern": r"val loss (?P<val_loss>\S+)"}, "steps": None}
    rows, failure = all_reports(plan(script.format(code=0), **given), tmp_path / "good")
    assert ([(row["rung"], row["val_loss"]) for row in rows], failure) == ([(1, 2.0)], None)
    rows, failure = all_reports(plan(script.format(code=3), **given), tmp_path / "bad")
    assert rows == []
    assert str(failure).startswith("the command ended with status 3: val loss 2\n")


def test_metrics_come_from_a_file_of_json_lines(tmp_path: Path) -> None:
    script = """
import json, os
with open(os.path.join(os.environ["HPO_DIR"], "log.jsonl"), "w") as file:
    for step in (10, 20, 30, 40):
        print(json.dumps({"iter": step, "eval": {"loss": 1 / step}}), file=file)
        print("no json", file=file)
    file.write(json.dumps({"iter": 41, "eval": {"loss": float("nan")}}))
"""
    metric = {"file": "log.jsonl", "step": "iter"}
    rows, failure = all_reports(plan(script, metric=metric, objective="eval.loss"), tmp_path)
    assert [(row["rung"], row["step"], row["eval.loss"]) for row in rows] == [
        (r, 10 * r, 0.1 / r) for r in (1, 2, 3, 4)
    ]
    assert failure is None


CLIENT = """
import hpo, time
trial = hpo.current_trial()
assert trial.params == {"model": {"width": 3}, "lr": 0.5}, trial.params
assert (trial.study, trial.number, trial.attempt, trial.seed) == ("planted", 7, 1, 0)
assert not trial.checkpoint.exists()
for step in range(1, 41):
    trial.report(step, {"eval/loss": 1 / step}, val_loss=step)
    if trial.should_stop():
        print("stopped at", step)
        break
"""


def test_script_reports_by_the_client(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(ROOT)}
    rows, failure = all_reports(plan(CLIENT, metric=None, env=env), tmp_path, **{"model": {"width": 3}, "lr": 0.5})
    assert failure is None
    assert [(row["rung"], row["val_loss"]) for row in rows] == [(1, 10), (2, 20), (3, 30), (4, 40)]
    assert rows[0]["eval/loss"] == 0.1


def test_a_metric_that_was_reported_without_the_objective_belongs_to_the_next_rung_alone(tmp_path: Path) -> None:
    script = """
import hpo
trial = hpo.current_trial()
trial.report(5, accuracy=0.5)
for step in (8, 10, 20, 30, 40): trial.report(step=step, val_loss=1)
"""
    rows, _ = all_reports(plan(script, metric=None, env={"PYTHONPATH": str(ROOT)}), tmp_path)
    assert [row.get("accuracy") for row in rows] == [0.5, None, None, None]


def test_a_file_of_metrics_that_is_replaced_is_read_from_its_start(tmp_path: Path) -> None:
    found: list[tuple[float | None, Any]] = []
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n')
    reader = FileReader(path, "step", lambda step, metrics: found.append((step, metrics["loss"])))
    reader.read()
    new = tmp_path / "new.jsonl"
    new.write_text('{"step": 2, "loss": 2}\n{"step": 3, "loss": 3}\n')  # longer than the old one
    new.replace(path)
    reader.read()
    assert found == [(1, 1), (2, 2), (3, 3)]


def test_only_rank_0_reports(tmp_path: Path) -> None:
    script = "import hpo\nfor step in (10, 20, 30, 40): hpo.current_trial().report(step, val_loss=1)"
    env = {"PYTHONPATH": str(ROOT), "RANK": "1"}
    rows, failure = all_reports(plan(script, metric=None, env=env), tmp_path)
    assert rows == []
    assert "status 0, and nothing of what it reported has a number for val_loss" in str(failure)


def test_client_does_nothing_outside_of_a_search() -> None:
    reports = "t.report(1, val_loss=2); t.report(step=2, val_loss=None); t.report(3, note='x')"
    program = f"import hpo; t = hpo.current_trial(); {reports}; print(t.should_stop(), t.params, t.number)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False {} None\n"


def test_configuration_reaches_the_script_in_every_form(tmp_path: Path) -> None:
    script = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)])); sys.exit(1)"
    values = {"lr": 1e-05, "n": 3, "optimizer": {"name": "adam w"}, "flag": True, "none": None}
    words = [
        "--lr={lr}",
        "{{lr}}",
        '{"a": 1}',
        "{flags}",
        "{config}",
        "{config.json}",
        "{dir}",
        "{seed}",
        "-c",
        "x {optimizer.name}",
        "-lc",
        "x {optimizer.name}",
    ]
    given = plan(script, words=words, env={"LR": "{lr}", "ALL": "{flags}"})
    _, failure = all_reports(given, tmp_path, **values)
    assert isinstance(failure, CommandFailed)
    line = (tmp_path / "output.log").read_text().splitlines()[0]
    argv, env = json.loads(line)
    flags = ["--lr=1e-05", "--n=3", "--optimizer.name=adam w", "--flag=True", "--none=None"]
    paths = [str(tmp_path / name) for name in ("params.yaml", "params.json", "files")]
    assert argv == ["--lr=1e-05", "{lr}", '{"a": 1}', *flags, *paths, "0", "-c", "x 'adam w'", "-lc", "x 'adam w'"]
    assert (env["LR"], env["ALL"]) == ("1e-05", " ".join(flags))
    shared = {name: env[f"HPO_{name}"] for name in ("STUDY", "TRIAL", "ATTEMPT", "SEED", "CONFIG", "DIR")}
    assert shared == {
        "STUDY": "planted",
        "TRIAL": "7",
        "ATTEMPT": "1",
        "SEED": "0",
        "CONFIG": paths[0],
        "DIR": paths[2],
    }
    assert json.loads(Path(paths[1]).read_text()) == parse_yaml(Path(paths[0]).read_text()) == {**values, "seed": 0}
    assert "1.0e-05" in Path(paths[0]).read_text()  # which PyYAML reads as a number, too


TRAINS = "for step in range(10, 60, 10): print(f'step {step}: train loss 1 val loss 2')\n"
FAILURES = {
    "prints nothing": ("", "status 0, and nothing of what a line matches metric.pattern", ()),
    "exits early": ("print('step 20: train loss 1 val loss 2')", "after step 20, and the last rung is at step 40", ()),
    "exits 1": ("raise ValueError('bad lr')", "ended with status 1: ValueError: bad lr", ()),
    "no memory": ("raise MemoryError('x')", "MemoryError", ("oom",)),
    "cuda memory": ("raise RuntimeError('CUDA out of memory. Tried')", "CUDA out of memory", ("oom",)),
    "device": ("raise RuntimeError('CUDA error: unspecified launch failure')", "CUDA error", ("device",)),
    "segfault": ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV", ()),
    "killed": ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL", ("signal",)),
    "killed in a shell": ("import sys; sys.exit(137)", "ended by SIGKILL", ("signal",)),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_are_classified_by_status_and_last_lines(tmp_path: Path, case: str) -> None:
    script, message, kinds = FAILURES[case]
    _, failure = all_reports(plan(script), tmp_path)
    assert isinstance(failure, CommandFailed)
    assert message in str(failure)
    found = {"oom": is_out_of_memory(failure), "device": is_device_fault(failure), "signal": failure.by_signal}
    assert tuple(kind for kind, true in found.items() if true) == kinds


def test_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    given = plan("")
    _, failure = all_reports(type(given)(("no-such-program", "x"), {}, given.metric, given.steps, "val_loss"), tmp_path)
    assert str(failure) == "the command cannot be started: No such file or directory: no-such-program"


def test_values_of_a_resumed_script_count_from_the_next_rung_on(tmp_path: Path) -> None:
    rows, failure = all_reports(plan(LINES.replace("3.5,", "3.5")), tmp_path, rung=2)
    assert failure is None
    assert [(row["rung"], row["val_loss"]) for row in rows] == [(3, 70), (4, 60)]


@pytest.mark.parametrize("n_mb", [30, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_flood_of_output_is_read_and_keeps_bounded_files(tmp_path: Path, n_mb: int) -> None:
    script = f"""
import sys
line = "x" * 1023 + "\\n"
for mb in range({n_mb}):
    sys.stdout.write(line * 1024)
    if mb == {n_mb // 2}:
        print("step 40: train loss 1 val loss 0.25", flush=True)
print("the end")
"""
    rows, failure = all_reports(plan(script, steps={"last": 40, "rungs": 1}), tmp_path)
    assert ([row["val_loss"] for row in rows], failure) == ([0.25], None)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("output*")}
    assert sizes.keys() == {"output.log", "output.first.log", "output.previous.log"}
    assert max(sizes.values()) <= command_process.LOG_BYTES
    assert (tmp_path / "output.log").read_text().endswith("the end\n")


def test_two_lanes_train_side_by_side(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        for step in (10, 20, 30, 40):
            print(f"step {step}: train loss 1 val loss {sys.argv[1]}")
            time.sleep(0.1)
        time.sleep(60)
    """)
    given = plan(script, words=["{lr}"])
    runs = CommandRuns(given, [config({"lr": 0.5}), config({"lr": 0.25})])
    for lane in (0, 1):
        runs.assign(lane, TrialPlace("planted", lane, 1, tmp_path / str(lane)))
    found: dict[int, list[float]] = {0: [], 1: []}
    start = time.monotonic()
    for _, reports in runs:
        for lane, report in reports.items():
            found[lane].append(report["val_loss"])
            if report["rung"] == 4:
                runs.stop(lane)
    assert found == {0: [0.5] * 4, 1: [0.25] * 4}
    assert time.monotonic() - start < 20

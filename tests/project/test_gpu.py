"""`make gpu` on a CPU: the smallest parts, parts that fail and hang, the environment, and the kept results."""

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu import environment
from bench.gpu.__main__ import run_parts
from bench.gpu.networks import flops_per_token, n_weights
from bench.gpu.plan import PARTS, Part, stages
from bench.gpu.records import RecordFile, Settings, without_paths
from bench.gpu.steps import MARK, count_events, slowest_kernels
from bench.gpu.suite import FULL_SIZE, marked_files, summarize
from bench.gpu.table import as_table
from docs import gpu_tables
from model.nn.architecture import GPT, MoE
from model.nn.gpt import Network
from model.nn.init import initial_weights
from tests.support.cases import exhaustive

ROOT = Path(__file__).parents[2]
TINY = Settings("cpu", tiny=True)


@pytest.mark.parametrize("name", ["loops 1 M eager", exhaustive("packs 1 M")])
def test_the_smallest_parts_run_on_a_cpu_and_write_a_file_and_a_table(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--parts", f"card,{name}"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("cpu-*.json")
    result = json.loads(path.read_text())
    assert [(part["part"], part["status"]) for part in result["parts"]] == [("card", "done"), (name, "done")]
    rows = [record["row"] for record in result["parts"][1]["records"]]
    assert rows
    assert all(row["tokens/s"] > 0 for row in rows)
    assert name != "packs 1 M" or [row["K"] for row in rows] == [1, 2]
    assert "| parts done | 2 of 2 | all |" in done.stdout.split("\n\n")[-1]


def _emit(settings: Settings, emit, name: str) -> None:  # type: ignore[no-untyped-def]
    emit("Made up", name=name)


def _fail(settings: Settings, emit) -> None:  # type: ignore[no-untyped-def]
    emit("Made up", name="before the failure")
    raise ValueError("made-up failure")


def _hang(settings: Settings, emit) -> None:  # type: ignore[no-untyped-def]
    emit("Made up", name="before the end of its time")
    subprocess.run(["sleep", "60"], check=False)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_parts_that_fail_and_hang_lose_neither_their_rows_nor_other_parts(tmp_path: Path) -> None:
    parts = [Part("fails", _fail, 20), Part("hangs", _hang, 4), Part("works", _emit, 20, {"name": "last"})]
    began = time.monotonic()
    result = run_parts(parts, Settings("cpu", tiny=False), 1, tmp_path)
    assert time.monotonic() - began < 20
    assert [part["status"] for part in result["parts"]] == ["failed", "stopped at its time limit", "done"]
    assert "ValueError: made-up failure" in result["parts"][0]["log"]
    names = [record["row"]["name"] for part in result["parts"] for record in part["records"]]
    assert names == ["before the failure", "before the end of its time", "last"]
    (path,) = tmp_path.glob("unknown-*.json")
    assert json.loads(path.read_text()) == result


def test_no_part_starts_when_the_time_is_over(tmp_path: Path) -> None:
    result = run_parts([Part("late", _emit, 20, {"name": "late"})], TINY, 0.01, tmp_path)
    assert [part["status"] for part in result["parts"]] == ["no time left"]


def test_a_row_that_was_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "rows")
    assert file.read() == []
    file.emit("Made up", n=1)
    with file.path.open("a") as out:
        out.write('{"table": "Made')
    assert file.read() == [{"table": "Made up", "row": {"n": 1}}]


def test_only_parts_that_time_nothing_run_beside_others() -> None:
    assert [part.name for part in stages(PARTS)[1]] == [p.name for p in PARTS if p.beside or p.name == "tests"]
    assert all(len(stage) == 1 for i, stage in enumerate(stages(PARTS)) if i != 1)
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_a_trace_is_counted_per_step() -> None:
    def event(name: str, cat: str, ts: float, dur: float) -> dict[str, object]:
        return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur}

    events = [
        event(MARK, "user_annotation", 100, 1000),
        event("aten::mm", "cpu_op", 50, 10),  # before the steps
        *(event("aten::mm", "cpu_op", 100 + i, 1) for i in range(30)),
        *(event("cudaLaunchKernel", "cuda_runtime", 100 + i, 1) for i in range(20)),
        event("cudaStreamSynchronize", "cuda_runtime", 500, 10),
        event("cudaDeviceSynchronize", "cuda_runtime", 1200, 10),  # after the steps
        event("gemm", "kernel", 200, 100),
        event("add", "kernel", 250, 100),  # on another stream, half of it at the same time
        event("add", "kernel", 1000, 100),
        event("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 400, 50),
        {"ph": "M", "name": "process_name"},
    ]
    row = count_events(events)
    assert (row["kernels"], row["launches"], row["operators"], row["syncs"]) == (0.3, 2.0, 3.0, 0.1)
    assert (row["copies to the device"], row["copies to the host"]) == (0.1, 0.0)
    assert row["idle"] == "70%"  # 150 + 100 + 50 of 1,000 are busy
    assert row["ms"] == 0.1
    assert slowest_kernels(events) == [
        {"kernel": "add", "us": 20.0, "launches": 0.2, "share": "66.7%"},
        {"kernel": "gemm", "us": 10.0, "launches": 0.1, "share": "33.3%"},
    ]


@pytest.mark.parametrize("model", [GPT(tied=False, bias=True), GPT(mlp="swiglu", position="rope"), MoE()])
def test_operations_of_a_token_are_those_that_torch_counts(model: GPT | MoE, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_by_one(x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        parts = zip(x.split(counts.tolist()), weight.flatten(0, 1), strict=True)
        return torch.cat([part @ matrix.T for part, matrix in parts])

    monkeypatch.setattr("model.nn.moe.grouped_linear", one_by_one)  # torch counts no grouped products
    # torch does not count the fused attention of a CPU.
    network, vocab_size, B = Network(model, 100, explicit=True), 100, 3
    weights = {name: weight[None] for name, weight in initial_weights(model, vocab_size, 0).items()}
    assert n_weights(model, vocab_size)[0] == sum(weight.numel() for weight in weights.values())
    tokens = torch.randint(1, 100, (1, B, model.context))
    with FlopCounterMode(display=False) as counter:
        network(weights, tokens)
    # The backward pass takes twice as many operations as the forward pass.
    assert 3 * counter.get_total_flops() / tokens.numel() == pytest.approx(flops_per_token(model, vocab_size), rel=1e-6)


def test_the_environment_sees_the_packages_of_its_interpreter_and_of_the_wheels(tmp_path: Path) -> None:
    wheel = tmp_path / "made_up_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made_up_package.py", "NAME = 'made up'\n")
    python = environment.create(tmp_path / "venv", [wheel])
    code = "import made_up_package, bench.gpu, numpy, importlib.metadata as m; print(numpy.__file__, m.version('hpo'))"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    import numpy

    assert done.stdout.split() == [numpy.__file__, "0.2.0"]


def test_every_file_with_tests_of_a_gpu_is_found() -> None:
    marked = {*marked_files(), *FULL_SIZE}
    assert {"tests/gpu/test_training.py", "tests/gpu/test_launch.py", "tests/model/train/test_trainer.py"} <= marked
    assert all((ROOT / name).is_file() for name in marked)
    assert not set(marked_files()) & set(FULL_SIZE)


def test_the_report_of_pytest_becomes_counts_and_messages(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a" time="1"/><testcase name="b" time="2"><failure message="made\nup"/>'
        '</testcase><testcase name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    file = RecordFile(tmp_path / "rows")
    summarize(report, file.emit)
    assert file.read() == [
        {"table": "Tests", "row": {"passed": 1, "failed": 1, "skipped": 1, "seconds": 3.0}},
        {"table": "Failed tests", "row": {"test": "b", "message": "made up"}},
    ]


def test_the_page_holds_the_kept_results_or_says_that_there_are_none(tmp_path: Path) -> None:
    page = f"before\n{gpu_tables.BEGIN}\nold\n{gpu_tables.END}\nafter\n"
    assert "No GPU was available yet" in gpu_tables.with_results(page, tmp_path)
    rows = [{"table": "Card", "row": {"card": "Made Up 9000"}}, {"table": "Packs", "row": {"K": 1, "error": "a | b"}}]
    parts = [
        {"part": "card", "status": "done", "records": rows},
        {"part": "unet", "status": "failed", "seconds": 3.0, "log": "trace\nout of memory", "records": []},
    ]
    (tmp_path / "made-up.json").write_text(json.dumps({"date": "2026-01-01 00:00 UTC", "seconds": 9.0, "parts": parts}))
    text = gpu_tables.with_results(page, tmp_path)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "### Made Up 9000, 2026-01-01 00:00 UTC" in text
    assert "| parts done | 1 of 2 | all |" in text
    assert "| unet | failed | 3.0 | out of memory |" in text
    assert gpu_tables.with_results(text, tmp_path) == text


def test_a_table_has_the_columns_of_all_its_rows() -> None:
    table = as_table([{"a": 1000, "b": None}, {"a": 2, "c": "x | y"}])
    assert table.splitlines() == ["| a | c |", "|---|---|", "| 1,000 |  |", "| 2 | x \\| y |"]


def test_kept_results_name_no_folder_of_a_machine():
    log = f'File "{ROOT}/model/a.py", line 1\nFile "/opt/x/.venv/lib/python3.12/site-packages/torch/b.py", line 2'
    kept = 'File "model/a.py", line 1\nFile "lib/python3.12/site-packages/torch/b.py", line 2'
    assert json.loads(without_paths(json.dumps({"log": log}))) == {"log": kept}
    for path in gpu_tables.RESULTS.glob("*.json"):
        assert not re.search(r"[\s\"']/(home|opt|root)/", path.read_text("utf-8")), path.name

"""Commands of `hpo` on the device: a launch with several workers against one with packs, and `hpo limits`."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu.networks import LONG, base_config, data_of, small_config
from bench.gpu.records import Emit, Row, Settings
from bench.gpu.timing import gigabytes, peak_memory, reset_peak, seconds_of
from hpo.config.yaml import dump_yaml
from model.memory.estimate import estimate_memory
from model.section import updated
from model.train.trainer import Trainer

LAUNCHES, LIMITS = "Workers against packs in `hpo launch`", "`hpo limits` against the memory in use"
TRIALS, TOKENS = 16, 128_000  # a run takes a hundred updates of 1,024 tokens


def launches(settings: Settings, emit: Emit, size: str = "1 M") -> None:
    """Emit the duration of the same study with one worker, with several workers on the device and with packs."""
    n = 2 if settings.tiny else 4
    gpu = ["--gpus", "0"] if settings.device == "cuda" else []
    several = ["--per-gpu", str(n)] if gpu else ["--workers", str(n)]
    cases = {"--pack auto": ["--pack", "auto"], f"--pack {n}": ["--pack", str(n)], " ".join(several): several}
    if not settings.tiny:
        cases |= {"--pack 8": ["--pack", "8"], "one worker": []}
    for name, options in cases.items():
        seconds, tokens, problem = _launch(settings, size, [*gpu, *options])
        columns = {"seconds": round(seconds, 1), "tokens/s, start included": round(tokens / seconds)}
        emit(LAUNCHES, options=name, trials=TRIALS, **columns, **({"error": problem} if problem else {}))


def _launch(settings: Settings, size: str, options: list[str]) -> tuple[float, int, str]:
    """Run a study in a new folder. Return the seconds, the tokens of all trials, and the error message or ""."""
    tokens = 512 if settings.tiny else TOKENS
    config = updated(small_config(size, settings), {"run.tokens": tokens, "run.rungs": 4})
    study = {
        "base": config.model_dump(mode="json"),
        "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
        "budget": {"trials": TRIALS},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed.yaml"
        path.write_text("# Which lr?\n" + dump_yaml(study))
        began = time.perf_counter()
        done = run_hpo(["launch", "--study", str(path), "--plain", *options], Path(folder))
        seconds = time.perf_counter() - began
        trials = json.loads(run_hpo(["trials", "--format", "json"], Path(folder)).stdout or "[]")
    complete = sum(str(trial.get("state", "")).lower() == "complete" for trial in trials)
    problem = done.stderr.strip()[-300:] if done.returncode else ""
    return seconds, complete * tokens, problem or ("" if complete == TRIALS else f"{complete} trials complete")


def run_hpo(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    command = [sys.executable, "-m", "hpo", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def limits(settings: Settings, emit: Emit, base: str) -> None:
    """Emit what `hpo limits` says of a base, then the memory of a run at the batch size that it found."""
    config = base_config(base, settings)
    values = LONG | {"data.name": "python-docs", "tokenizer.vocab_size": config.tokenizer.vocab_size}  # type: ignore[union-attr]
    values |= {"data.val_fraction": config.data.val_fraction} | {
        f"run.{key}": getattr(config.run, key) for key in ("device", "precision", "compile")
    }
    if settings.tiny:
        values |= {"run.tokens": 1024}  # a rung of one update is then a small batch
        values |= {f"model.{key}": getattr(config.model, key) for key in ("n_layer", "n_embd", "n_head", "context")}
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    memory = ["--memory", "0.2"] if settings.tiny else []
    began = time.perf_counter()
    done = run_hpo(["limits", base, *words, *memory, "--format", "json"], Path.cwd())
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1000:])
    rows = json.loads(done.stdout)
    best = max(row["batch_size"] for row in rows if row["fits"])
    found: Row = next(row for row in rows if row["batch_size"] == best)
    answer = {"batch": best, "seconds": round(time.perf_counter() - began, 1), "estimate GB": found["estimated_gb"]}
    answer |= {"measured by limits GB": found["measured_gb"], "tries": sum(r["measured_gb"] is not None for r in rows)}
    emit(LIMITS, network=base, **answer, **_memory_in_use(settings, base, best))


def _memory_in_use(settings: Settings, base: str, batch: int) -> dict[str, Any]:
    """Train two updates at a batch size; return the memory of its tensors and what the driver counts as used."""
    config = updated(base_config(base, settings), {"run.batch_size": batch})
    prepared = data_of(config)
    before = torch.cuda.mem_get_info()[0] if settings.device == "cuda" else 0
    reset_peak(settings.device)
    trainer = Trainer([config], prepared)
    seconds = seconds_of(lambda: trainer._train(2), settings.device)
    trainer.validation.evaluate()
    estimate = estimate_memory(config, prepared.vocab_size).total
    row: dict[str, Any] = {"estimate without calibration GB": gigabytes(estimate), "two updates s": round(seconds, 2)}
    if settings.device != "cuda":
        return row
    return row | {
        "peak of tensors GB": gigabytes(peak_memory("cuda")),
        "reserved GB": gigabytes(torch.cuda.max_memory_reserved()),
        "used on the card GB": gigabytes(before - torch.cuda.mem_get_info()[0]),
    }

"""Which study a command means, and which studies and texts `hpo launch` refuses."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.errors import Problem
from hpo.queue.registry import register_study
from hpo.storage.store import open_store
from hpo.study.load import load_study
from tests.support.command import environment, hpo, run_in_process, trivial
from tests.support.tiny import corpus


def text_study(folder: Path, *, context: int = 32) -> str:
    """Write a study of the GPT without its text; return its name."""
    (folder / "gpt.yaml").write_text(
        "base:\n  tokenizer: {name: bytes}\n"
        f"  model: {{n_layer: 1, n_head: 2, n_embd: 32, context: {context}}}\n"
        "  run: {tokens: 8192, rungs: 2, batch_size: 4, device: cpu}\n"
        "space: {optimizer.lr: {low: 1e-3, high: 1e-2}}\nbudget: {trials: 1}\n"
    )
    return "gpt.yaml"


def made(folder: Path, url: str, name: str = "trivial", trials: int = 4) -> None:
    """Create a study without workers."""
    trivial(folder, name)
    with contextlib.chdir(folder), open_store(url, create=True) as store:
        register_study(store, load_study(f"{name}.yaml", budget={"trials": trials}), None, {})


def test_study_may_be_left_out_where_there_is_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"

    def status(*more: str) -> Any:
        return json.loads(run_in_process("status", "--format", "json", "--storage", url, *more, cwd=tmp_path))["study"]

    open_store(url, create=True).close()
    with pytest.raises(Problem, match=r"^--study: the storage holds no study; `hpo launch` creates a study$"):
        status()
    made(tmp_path, url)
    assert status() == "trivial"
    made(tmp_path, url, "second")
    with pytest.raises(Problem, match=r"^--study: the storage holds 2 studies \(second, trivial\); pass --study NAME$"):
        status()
    assert status("--study", "second") == status("--study", "studies/second.yaml") == "second"
    with pytest.raises(Problem, match=r"^--study: no study 'scond' in the storage; there are second, trivial$"):
        status("--study", "scond")


def contents(url: str) -> list[Any]:
    """Return the names, attributes and trial counts of the studies of a storage."""
    with open_store(url) as store:
        found = optuna.get_all_study_summaries(storage=store.optuna)
        return [(s.study_name, s.user_attrs, s.n_trials) for s in found]


def test_study_of_another_shape_is_refused_with_both_values_and_nothing_is_changed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs/hpo.db"
    made(tmp_path, url)
    before = contents(url)
    path = tmp_path / "trivial.yaml"
    path.write_text(path.read_text().replace("high: 1.0", "high: 2.0").replace("rungs: 3", "rungs: 4"))
    failed = hpo("launch", "--study", "trivial.yaml", "--trials", "9", cwd=tmp_path, status=2)
    assert failed.stderr.splitlines()[-3:] == [
        "hpo: trivial.yaml: rungs: the study in the storage has 3, here it is 4",
        "trivial.yaml: space.lr.high: the study in the storage has 1.0, here it is 2.0",
        "the definition of a study cannot change: `hpo fork trivial.yaml --from trivial --as trivial-2` creates "
        "another study with the trials that fit its definition; `hpo worker --study trivial` continues the study in "
        "the storage; or give the file another name",
    ]
    assert contents(url) == before


def test_study_that_another_program_made_is_refused(storage_url: str, tmp_path: Path) -> None:
    trivial(tmp_path)
    with open_store(storage_url, create=True) as store:
        theirs = optuna.create_study(storage=store.optuna, study_name="trivial")
        theirs.tell(theirs.ask(), 1.0)
    before = contents(storage_url)
    failed = hpo("launch", "--study", "trivial.yaml", cwd=tmp_path, status=2, HPO_STORAGE=storage_url)
    assert "study trivial: the storage holds a study of this name that another program created" in failed.stderr
    assert contents(storage_url) == before
    for command in ("status", "best", "trials", "worker"):
        with pytest.raises(Problem, match="'trivial' was not created by `hpo launch`"):
            run_in_process(command, "--study", "trivial", "--storage", storage_url, cwd=tmp_path)
    assert run_in_process("studies", "--format", "json", "--storage", storage_url, cwd=tmp_path) == "[]\n"


def test_two_launches_at_one_moment_share_the_study(storage_url: str, tmp_path: Path) -> None:
    trivial(tmp_path)
    command = [sys.executable, "-m", "hpo", "launch", "--study", "trivial.yaml", "--trials", "12"]
    started = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(HPO_STORAGE=storage_url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in started:
        printed, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "Traceback" not in said
        assert printed.startswith("best: trial ")
    found = json.loads(run_in_process("trials", "--format", "json", "--storage", storage_url, cwd=tmp_path))
    assert len(found) == 12
    assert {row["state"] for row in found} <= {"complete", "pruned"}
    assert [row["kind"] for row in found].count("baseline") == 1


@pytest.mark.parametrize(
    ("name", "content", "override", "said"),
    [
        ("empty.txt", b"", "text", "empty"),
        ("binary.txt", bytes(range(256)) * 50, "text", "UTF-8"),
        ("short.txt", b"One line.\n\nAnother.\n\nA third.\n", "text", "needs at least 3 distinct documents"),
        ("names.txt", b"".join(b"%d\n" % i for i in range(90)), "lines", "context"),
        ("missing.txt", None, "text", "missing.txt"),
        ("folder.txt", "folder", "text", "folder.txt"),
        ("rows.csv", b"title,body\na,b\nc,d\ne,f\n", "table", "column"),
    ],
)
def test_text_that_cannot_be_trained_on_is_refused_before_anything_is_made(
    tmp_path: Path, name: str, content: bytes | str | None, override: str, said: str
) -> None:
    if content == "folder":
        (tmp_path / name).mkdir()
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    more = ["--set", f"data.name={override}", "--set", f"data.path={name}"]
    more += ["--set", "data.column=titel"] if override == "table" else []
    with pytest.raises(Problem) as caught:
        run_in_process("launch", "--study", text_study(tmp_path, context=512), *more, cwd=tmp_path)
    assert caught.value.status == 2
    assert str(caught.value).startswith(("data", "model.context"))
    assert said in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="there may be a GPU")
def test_gpu_asked_for_where_there_is_none_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    study = text_study(tmp_path)
    data = ["--set", "data.name=text", "--set", f"data.path={corpus()}"]
    with pytest.raises(Problem, match="--gpus: this machine has no NVIDIA GPU, got 0"):
        run_in_process("launch", "--study", study, *data, "--gpus", "0", cwd=tmp_path)
    with pytest.raises(Problem, match=r"run\.device: no cuda device on this machine; use auto or cpu, got cuda"):
        run_in_process("launch", "--study", study, *data, "--set", "run.device=cuda", cwd=tmp_path)
    assert not (tmp_path / "runs").exists()

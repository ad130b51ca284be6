"""This version reads, resumes and trains what version 0.1.0 wrote.

version_0_1/ holds a study whose trial 6 was interrupted after rung 3, with the run folders of trials 0, 5 (the best)
and 6. curves.json holds the curves of the same study run to its end by version 0.1.0, and exported.yaml the file that
its launch exported. @FOLDER@ stands for the folder of the study.
"""

import json
import re
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.config.yaml import parse_yaml
from hpo.errors import Problem
from hpo.optuna_internals.tables import FINISHED
from hpo.queue.compatibility import PROTOCOL_VERSION
from hpo.queue.registry import load_stored_study
from hpo.storage.attributes import PROTOCOL, SPEC, SUGGESTED_BY
from hpo.storage.store import open_store
from hpo.study.spec import DEFAULT_TRAIN
from model.config import ENGINE
from tests.support.command import hpo, run_in_process
from tests.support.tiny import text

pytestmark = pytest.mark.usefixtures("created_tables")

WRITTEN = Path(__file__).parent / "version_0_1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files as version 0.1.0 left them."""
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    (tmp_path / "words.txt").write_text(text(3, 400), "utf-8")
    for path in tmp_path.rglob("*.yaml"):
        path.write_text(path.read_text().replace("@FOLDER@", str(tmp_path)))
    for path in tmp_path.rglob("*.safetensors"):
        put_into_header(path, str(tmp_path))
    with sqlite3.connect(tmp_path / "runs" / "hpo.db") as connection:
        replaced = "UPDATE study_user_attributes SET value_json = replace(value_json, '@FOLDER@', ?)"
        connection.execute(replaced, (str(tmp_path),))
    connection.close()
    return tmp_path


def put_into_header(path: Path, folder: str) -> None:
    """Replace @FOLDER@ in the header of a safetensors file: 8 bytes with the length, then JSON."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].decode().rstrip().replace("@FOLDER@", folder).encode()
    header += b" " * (-len(header) % 8)  # tensors are aligned to 8 bytes
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def expected(number: int) -> dict[int, float]:
    curves = json.loads((WRITTEN / "curves.json").read_text())
    return {int(rung): value for rung, value in curves[str(number)].items()}


def test_commands_read_the_study(folder: Path) -> None:
    status = json.loads(run_in_process("status", "--format", "json", cwd=folder))
    assert {state: n for state, n in status["trials"].items() if n} == {"complete": 6, "waiting": 1}
    assert status["best"]["number"] == 5
    rows: list[dict[str, Any]] = json.loads(run_in_process("trials", "--format", "json", cwd=folder))
    assert [row["rung"] for row in rows] == [6] * 6 + [3]
    assert [row["val_loss"] for row in rows[:6]] == [expected(n)[6] for n in range(6)]
    assert "trial 5" in run_in_process("why", "5", cwd=folder)
    run_in_process("export", "-o", "out.yaml", cwd=folder)
    assert f"train: {DEFAULT_TRAIN}\n" in (folder / "out.yaml").read_text()
    run_in_process("report", "--html", "report.html", cwd=folder)
    assert "legacy" in (folder / "report.html").read_text()


def test_launch_resumes_the_interrupted_trial_from_its_checkpoint(folder: Path) -> None:
    done = hpo("launch", "--study", "legacy.yaml", "--workers", "1", "--plain", cwd=folder)
    rungs = re.findall(r"trial 6: rung (\d)/6", done.stderr + done.stdout)
    assert rungs == ["4", "5", "6"]
    with open_store(f"sqlite:///{folder}/runs/hpo.db") as store:
        study = load_stored_study(store, "legacy").optuna
        trials = study.get_trials()
        protocol = study.user_attrs[PROTOCOL]
    assert [trial.state.name in FINISHED for trial in trials] == [True] * 7
    assert trials[6].intermediate_values == pytest.approx(expected(6), rel=1e-5)
    lines = (folder / "runs" / "legacy" / "trials" / "0006" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["rung"] for line in lines] == [1, 2, 3, 4, 5, 6]
    output = done.stderr + done.stdout
    assert "trained with engine 1: their losses are not comparable to the last bit" in output
    assert f"trial 6 resumes at rung 3 with another engine: its curve is of engines 1 and {ENGINE}" in output
    shown = json.loads(run_in_process("show", "6", "--format", "json", cwd=folder))
    assert f"trained with engines 1 and {ENGINE}" in shown["note"]
    status = run_in_process("status", cwd=folder)
    assert f"different engines (6 with engine 1, 1 with engines 1 and {ENGINE})" in status
    assert protocol == PROTOCOL_VERSION, "version 0.1.0 refuses every protocol but 1, and cannot read new checkpoints"


def test_launch_with_an_unchanged_file_continues_under_the_rules_of_version_0_1(folder: Path) -> None:
    with open_store(f"sqlite:///{folder}/runs/hpo.db") as store:
        before = optuna.load_study(study_name="legacy", storage=store.optuna).user_attrs[SPEC]
    assert before["train"] == "model.train:Trainer"
    assert "peers" not in before["pruner"]
    done = hpo("launch", "--study", "legacy.yaml", "--trials", "9", "--workers", "1", "--plain", cwd=folder)
    note = (
        "note: legacy.yaml does not state these fields, so the study keeps its values: "
        'probe "off" (default "auto"), pruner.peers "finished" (default "all"), '
        "sampler.multivariate true (default false)\n"
    )
    assert note in done.stderr + done.stdout
    assert "sampler tpe, pruner median of finished trials" in done.stderr + done.stdout
    file = parse_yaml((folder / "runs" / "legacy" / "study.yaml").read_text())
    assert file["pruner"] == before["pruner"] | {"peers": "finished"}
    assert file["sampler"] == before["sampler"]
    report = folder / "report.html"
    run_in_process("report", "--html", str(report), cwd=folder)
    assert "peers: finished" in report.read_text()
    with open_store(f"sqlite:///{folder}/runs/hpo.db") as store:
        stored = load_stored_study(store, "legacy")
        assert stored.optuna.user_attrs[SPEC] == before
        assert stored.study.file.pruner.model_dump()["peers"] == "finished"
        assert len(stored.optuna.trials) == 9
        suggested = [trial.user_attrs[SUGGESTED_BY]["by"] for trial in stored.optuna.trials[7:]]
    assert suggested == ["tpe", "tpe"]


def test_exported_file_trains_to_the_same_loss(folder: Path) -> None:
    done = hpo("train", "exported.yaml", "--out", "out", cwd=folder)
    (log,) = (folder / "out").rglob("metrics.jsonl")
    curve = {row["rung"]: row["val_loss"] for row in map(json.loads, log.read_text().splitlines())}
    assert curve == pytest.approx(expected(5), rel=1e-5), done.stderr


def test_study_of_a_newer_protocol_is_refused_with_the_remedy(folder: Path) -> None:
    with open_store(f"sqlite:///{folder}/runs/hpo.db") as store:
        study = load_stored_study(store, "legacy").optuna
        assert study.user_attrs[PROTOCOL] == 1
        study.set_user_attr(PROTOCOL, PROTOCOL_VERSION + 1)
        with pytest.raises(
            Problem,
            match=f"study legacy: a newer version of hpo uses it with protocol {PROTOCOL_VERSION + 1}, and this "
            f"version knows protocols up to {PROTOCOL_VERSION}; install the newer version on all machines",
        ):
            load_stored_study(store, "legacy")

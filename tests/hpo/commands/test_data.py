"""`hpo data`: prepared datasets, and what became of the rows of a file."""

import gzip
import json
from pathlib import Path

from hpo.config.yaml import dump_yaml
from tests.support.command import hpo
from tests.support.tiny import text, tiny


def test_rows_without_text_and_repeated_rows_are_reported_wherever_data_are_prepared(here: Path) -> None:
    rows = [{"t": line} for line in text(5, 60).splitlines() if line]
    rows = [*rows, *rows[:20], *({"other": n} for n in range(20))]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    base = tiny({"run.tokens": 3 * 64, "run.rungs": 3}).model_dump(mode="json")
    base["data"] = {"name": "table", "path": "rows.jsonl", "column": "t"}
    study = {"base": base, "space": {"optimizer.lr": {"low": 1e-3, "high": 2e-3}}, "budget": {"trials": 1}}
    (here / "rows.yaml").write_text(dump_yaml(study))
    counts = {"read": 100, "missing": 20, "repeated": 20, "documents": 60}
    line = "data: 100 rows read, 20 missing, 20 repeated, 60 documents kept"

    prepared = hpo("data", "prepare", "--study", "rows.yaml", "--format", "json", cwd=here)
    assert json.loads(prepared.stdout)["rows"] == counts
    launched = hpo("launch", "--study", "rows.yaml", "--workers", "1", "--plain", cwd=here)
    assert line in launched.stderr
    assert "note: 20 of 100 rows of the data have no text in the column, and are left out." in launched.stdout
    assert "note: 20 of 100 rows of the data repeat an earlier one, and are left out." in launched.stdout
    trained = hpo("train", "runs/rows/best.yaml", "--out", "out", cwd=here)
    assert line in trained.stderr


def test_a_compressed_file_that_fills_the_memory_is_one_message(here: Path) -> None:
    (here / "bomb.gz").write_bytes(64 * gzip.compress(b" " * 2**24))
    done = hpo("data", "prepare", "--set", "data.name=text", "--set", "data.path=bomb.gz", cwd=here, status=2)
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("hpo: ")]
    assert message.startswith("hpo: data.path: its first ")

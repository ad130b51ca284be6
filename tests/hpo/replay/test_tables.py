import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from hpo.replay.curves import Curves
from hpo.replay.tables import read_curves

SPACE = {"opt.lr": {"low": 1e-4, "high": 1.0, "log": True}, "kind": {"choices": ["a", "b"]}, "n": {"choices": [1, 2]}}
RUNS = [  # lr, kind, n, seed, values
    (1e-3, "a", 1, 0, [3.0, 2.0, 1.5, 1.0]),
    (1e-3, "a", 1, 1, [3.2, 2.2, 1.7, 1.2]),
    (1e-2, "b", 2, 0, [4.0, float("nan"), float("nan"), float("nan")]),
    (7.0, "b", 2, 0, [4.0, 3.0, 2.0, 1.0]),  # outside the space
]


def description(folder: Path, **keys: Any) -> Path:
    path = folder / "curves.yaml"
    path.write_text(dump_yaml({"space": SPACE, **keys}))
    return path


def wide(folder: Path, name: str = "runs.csv.gz") -> str:
    rows = ["opt.lr,kind,n,seed,v1,v2,v3,v4"]
    rows += [",".join(map(str, [*fields, *values])) for *fields, values in RUNS]
    (folder / name).write_bytes(gzip.compress("\n".join(rows).encode()))
    return name


def check(curves: Curves) -> None:
    assert list(curves.params) == [{"opt.lr": 1e-3, "kind": "a", "n": 1}, {"opt.lr": 1e-2, "kind": "b", "n": 2}]
    assert list(curves.config) == [0, 0, 1]
    assert curves.values[:2] == pytest.approx(np.array([[2.0, 1.0], [2.2, 1.2]]))
    assert np.isinf(curves.values[2]).all()  # it diverged at the second of four marks
    assert curves.truth == pytest.approx([1.1, np.inf])
    assert curves.omitted == {"outside the space": 1}
    assert curves.units == pytest.approx(np.array([[0.25, 0.0, 0.0], [0.5, 1.0, 1.0]]))


def test_table_with_one_row_per_run(tmp_path: Path) -> None:
    check(read_curves(description(tmp_path, file=wide(tmp_path), values="v{rung}", rungs=2)))


def test_table_with_one_row_per_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"opt.lr": lr, "kind": kind, "n": n, "seed": seed, "step": 100 * i, "loss": None if v != v else v}
        for lr, kind, n, seed, values in RUNS
        for i, v in reversed(list(enumerate(values, 1)))
    ]
    (folder / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("HPO_CURVES", str(folder))
    keys = {"value": "loss", "step": "step", "run": ["opt.lr", "seed"], "rungs": 2, "tokens": 1000}
    curves = read_curves(description(tmp_path, file="runs.jsonl", **keys))
    check(curves)
    assert curves.rung_tokens == 500


def test_arrays_of_several_tables(tmp_path: Path) -> None:
    params = np.array([[lr, n] for lr, _, n, _, _ in RUNS])
    values = np.array([[9.0, *values] for *_, values in RUNS])
    np.savez(tmp_path / "runs.npz", v=np.stack([values + 1, values]), p=params, c=["opt.lr", "n"], t=["one", "two"])
    arrays = {"values": "v", "params": "p", "columns": "c", "tables": "t"}
    keys = {"file": "runs.npz", "arrays": arrays, "table": "two", "first_mark": 0, "rungs": 2}
    space = {key: SPACE[key] for key in ("opt.lr", "n")}
    curves = read_curves(description(tmp_path, space=space, **keys))
    assert curves.values[0] == pytest.approx([2.0, 1.0])
    assert curves.truth == pytest.approx([1.1, np.inf])


def test_run_that_ends_before_its_last_step_has_no_known_result(tmp_path: Path) -> None:
    rows = ["run,step,total,loss", *(f"0,{s},4,{5 - s}" for s in (1, 2, 3, 4)), *(f"1,{s},4,{5 - s}" for s in (1, 2))]
    (tmp_path / "runs.csv").write_text("\n".join(rows))
    keys = {"file": "runs.csv", "value": "loss", "step": "step", "run": "run", "total": "total", "rungs": 4}
    curves = read_curves(description(tmp_path, **(keys | {"space": {}})))
    assert list(curves.known) == [True, False]
    assert curves.values[1] == pytest.approx([4, 3, np.nan, np.nan], nan_ok=True)


def test_objective_that_is_maximized_is_read_as_a_loss(tmp_path: Path) -> None:
    curves = read_curves(description(tmp_path, file=wide(tmp_path), values="v{rung}", direction="maximize"))
    assert curves.values[0] == pytest.approx([-3.0, -2.0, -1.5, -1.0])
    assert np.isposinf(curves.values[2, 1:]).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"file": "runs.csv.gz", "values": "w{rung}"}, "curves.yaml: runs.csv.gz must have the column 'w1'"),
        ({"file": "none.csv", "values": "v{rung}"}, "file: must exist in"),
        ({"file": "runs.txt", "values": "v{rung}"}, "file: must end in .csv, .jsonl, .npz"),
        ({"file": "runs.csv.gz"}, "must have one of values, value and arrays"),
        ({"file": "runs.csv.gz", "value": "v1"}, "value requires step, run and rungs"),
        ({"file": "runs.csv.gz", "values": "v"}, "values must contain {rung}, got 'v'"),
        (
            {"file": "runs.csv.gz", "values": "v{rung}", "rungs": 9},
            "rungs must be at most 4, the number of marks, got 9",
        ),
        ({"file": "runs.csv.gz", "values": "v{rung}", "where": {"kind": "c"}}, "no row meets where"),
        ({"file": "runs.csv.gz", "values": "v{rung}", "tokns": 3}, "tokns: no such field; did you mean tokens?"),
    ],
)
def test_wrong_description_is_one_clear_message(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    wide(tmp_path)
    with pytest.raises(Problem) as raised:
        read_curves(description(tmp_path, **keys))
    assert message in str(raised.value)

"""`hpo launch` with workers on a GPU, and with workers on the CPU as a twin."""

import json

import pytest
import torch

from hpo.config.yaml import dump_yaml
from tests.support.command import hpo
from tests.support.tiny import tiny

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CASES = [
    pytest.param("cpu", ["--pack", "2"], id="cpu"),
    pytest.param("cuda", ["--gpus", "0"], marks=GPU, id="gpu"),
    pytest.param("cuda", ["--gpus", "0", "--per-gpu", "2"], marks=GPU, id="two workers on a gpu"),
    pytest.param("cuda", ["--gpus", "0", "--pack", "2"], marks=GPU, id="a pack on a gpu"),
]


@pytest.mark.parametrize(("device", "options"), CASES)
def test_a_launch_trains_all_trials_on_the_device(device, options, tmp_path, request):
    if device == "cuda":
        request.getfixturevalue("new_interpreters")  # as a user starts it
    config = tiny({"run.device": device, "run.compile": "off"})
    study = {
        "base": config.model_dump(mode="json"),
        "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}},
        "pruner": {"name": "none"},
        "budget": {"trials": 4},
    }
    (tmp_path / "device.yaml").write_text("# Which lr?\n" + dump_yaml(study))
    hpo("launch", "--study", "device.yaml", *options, cwd=tmp_path)
    trials = json.loads(hpo("trials", "--format", "json", cwd=tmp_path).stdout)
    assert [trial["state"].lower() for trial in trials] == ["complete"] * 4

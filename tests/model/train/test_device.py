"""What `auto` stands for on GPUs of different generations. torch's answers are replaced: no such GPU is here."""

import pytest
import torch

from model.errors import ConfigError
from model.train.device import compiles, resolve
from tests.support.tiny import tiny


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that makes torch report a GPU of a compute capability."""

    def report(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: capability >= (8, 0))

    return report


@pytest.mark.parametrize(
    ("capability", "network", "precision", "compiled"),
    [
        ((9, 0), "moe", "auto", "on"),
        ((9, 0), "moe", "fp32", "off"),  # torch multiplies groups in bf16 only
        ((8, 0), "moe", "auto", "off"),
        ((7, 0), "moe", "auto", "off"),
        ((8, 0), "gpt", "auto", "on"),
        ((7, 0), "gpt", "auto", "on"),
    ],
)
def test_auto_compiles_a_mixture_only_where_a_gpu_multiplies_its_groups(gpu, capability, network, precision, compiled):
    gpu(capability)
    config = tiny({"model.name": network, "run.device": "cuda", "run.precision": precision, "run.compile": "auto"})
    assert resolve(config).run.compile == compiled
    assert compiles(config) == (compiled == "on")


def test_on_is_refused_for_a_mixture_where_a_gpu_does_not_multiply_its_groups(gpu):
    gpu((8, 0))
    config = tiny({"model.name": "moe", "run.device": "cuda", "run.precision": "bf16", "run.compile": "on"})
    with pytest.raises(ConfigError, match=r"run\.compile: .* use auto or off, got on"):
        resolve(config)

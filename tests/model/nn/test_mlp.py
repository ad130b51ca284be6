import math

import pytest
import torch

from tests.support.packs import perturbed
from tests.support.small_gpt import KINDS, count, passing, small_gpt


@pytest.mark.parametrize("width", [12, 48])
@pytest.mark.parametrize("ratio", [4.0, 2.0])
def test_all_kinds_of_mlp_have_equal_parameters(width, ratio):
    assert len({count(small_gpt(n_embd=width, mlp_ratio=ratio, mlp=kind)) for kind in KINDS["mlp"]}) == 1


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("gelu", lambda h: h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))),
        ("silu", lambda h: h / (1 + torch.exp(-h))),
        ("relu", lambda h: h.clamp(min=0)),
        ("relu2", lambda h: h.clamp(min=0) ** 2),
    ],
)
def test_an_mlp_equals_its_formula(kind, activation):
    network = perturbed(small_gpt(mlp=kind, bias=True)).eval()
    mlp, x = network.blocks[0].mlp, torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    wanted = activation(x @ mlp.fc.weight.T + mlp.fc.bias) @ mlp.proj.weight.T + mlp.proj.bias
    torch.testing.assert_close(mlp(x, passing(network)), wanted)


def test_swiglu_equals_its_formula():
    network = perturbed(small_gpt(mlp="swiglu")).eval()
    mlp, x = network.blocks[0].mlp, torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    gate = x @ mlp.gate.weight.T
    wanted = (gate * torch.sigmoid(gate) * (x @ mlp.fc.weight.T)) @ mlp.proj.weight.T
    torch.testing.assert_close(mlp(x, passing(network)), wanted)

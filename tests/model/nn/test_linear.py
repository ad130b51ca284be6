import pytest
import torch

from model.nn.linear import normalize
from tests.support.packs import perturbed, random_tensor
from tests.support.small_gpt import KINDS, SHAPE, small_gpt


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("kind", KINDS["norm"])
def test_a_norm_equals_its_formula(kind, eps):
    norm = perturbed(small_gpt(norm=kind, norm_eps=eps, bias=True)).norm
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)) * 0.5
    if kind == "layernorm":
        centred = x - x.mean(-1, keepdim=True)
        wanted = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias
    else:
        wanted = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight
        assert not hasattr(norm, "bias")
    torch.testing.assert_close(norm(x), wanted)


@pytest.mark.parametrize("gain", ["scalar", "none"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS["norm"])
def test_a_norm_with_one_gain_or_none_equals_its_formula(kind, bias, gain):
    norm = perturbed(small_gpt(norm=kind, norm_gain=gain, norm_eps=0.1, bias=bias)).norm
    x = random_tensor(2, 3, 12)
    centred = x - x.mean(-1, keepdim=True) if kind == "layernorm" else x
    wanted = centred / (centred.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    if gain == "scalar":
        assert norm.weight.shape == (1,)
        wanted = wanted * norm.weight
    if bias and kind == "layernorm":
        wanted = wanted + norm.bias
    torch.testing.assert_close(norm(x), wanted)


@pytest.mark.parametrize("kind", KINDS["norm"])
@pytest.mark.parametrize("gain", ["vector", "scalar", "none"])
def test_norms_compute_in_fp32(kind, gain):
    shape = SHAPE.model_copy(update={"norm": kind, "norm_gain": gain})
    gains = {} if gain == "none" else {"norm.weight": torch.ones(1, 1 if gain == "scalar" else 12)}

    def norm(x):
        return normalize(x[None], gains, "norm", shape)[0]

    x = (random_tensor(4, 12) * 300).half()  # its squares overflow half precision
    with torch.autocast("cpu", torch.float16):
        found = norm(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, norm(x.float()))
    tiny = (random_tensor(4, 12) * 1e-6).half()
    assert norm(tiny).isfinite().all()

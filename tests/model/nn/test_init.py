import math

import pytest
import torch

from model.nn.architecture import GPT, MoE, Transformer
from tests.support.packs import build_network

SHAPES = {
    "gpt": GPT(n_layer=4, n_head=4, n_embd=96, context=128, init_std=0.05, tied=False, mlp="swiglu"),
    "moe": MoE(n_layer=4, n_head=4, n_embd=96, context=128, init_std=0.05, tied=False, mlp="swiglu", n_expert=40),
}
EMBEDDINGS = ("wte.weight", "wpe.weight")


def wanted(name: str, p: torch.Tensor, shape: Transformer) -> float:
    """Return the standard deviation that a matrix starts with, before any cut."""
    out, fan_in = p.shape[-2:]
    out = 96 if "qkv" in name else out
    residual = name.endswith(("attn.proj.weight", "mlp.proj.weight", "mlp.proj"))
    return {
        "normal": 0.05,
        "scaled": 0.05 / math.sqrt(8) if residual else 0.05,
        "kaiming": math.sqrt(2 / fan_in),
        "glorot": math.sqrt(2 / (fan_in + out)),
    }["normal" if name in EMBEDDINGS else shape.init]


# Of a Gaussian cut at 3 standard deviations: 1 - 2 c phi(c) / (2 Phi(c) - 1)
CUT = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))


@pytest.mark.parametrize("init", ["scaled", "normal", "kaiming", "glorot"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_matrix_starts_with_its_standard_deviation(name, init):
    shape = SHAPES[name].model_copy(update={"init": init})
    for name, p in build_network(shape, 512, 0).named_parameters():
        if p.ndim == 1:
            assert p.unique().tolist() == [1.0], name
            continue
        cut = init == "glorot" and name not in EMBEDDINGS
        std, error = wanted(name, p, shape), 1 / math.sqrt(p.numel())
        assert p.std().item() == pytest.approx(std * (CUT if cut else 1), rel=5 * error / math.sqrt(2)), name
        assert abs(p.mean().item()) < 5 * std * error, name
        largest = p.abs().max().item() / std
        assert largest <= 3.0001 if cut else largest > 3.1 or p.numel() < 5000, name


def test_the_three_parts_of_qkv_and_all_experts_are_alike():
    for init in ("glorot", "kaiming"):
        network = build_network(SHAPES["moe"].model_copy(update={"init": init}), 512, 0)
        for part in network.blocks[0].attn.qkv.weight.detach().chunk(3):
            std = math.sqrt(2 / 192) * CUT if init == "glorot" else math.sqrt(2 / 96)
            assert part.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * part.numel()))
        fc = network.blocks[0].mlp.fc.detach()
        assert len({expert[0, 0].item() for expert in fc}) == 40
        for expert in fc:
            assert expert.std().item() == pytest.approx(fc.std().item(), rel=5 / math.sqrt(2 * expert.numel()))


@pytest.mark.parametrize("init", ["scaled", "kaiming", "glorot"])
def test_a_tied_embedding_is_an_embedding_whatever_matrices_start_as(init):
    network = build_network(GPT(n_embd=96, init=init, init_std=0.05), 512, 0)
    assert network.wte.weight.std().item() == pytest.approx(0.05, rel=5 / math.sqrt(2 * 512 * 96))


def test_positions_have_a_standard_deviation_of_their_own():
    for std in (None, 0.0, 0.3):
        network = build_network(GPT(n_embd=96, context=128, position_std=std), 512, 0)
        wanted = 0.02 if std is None else std
        assert network.wpe.weight.std().item() == pytest.approx(wanted, rel=5 / math.sqrt(2 * 128 * 96))
        assert network.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_projections_start_orthogonal_and_the_weights_of_skips_at_zero():
    network = build_network(GPT(n_layer=4, embedding_projection=True, skips="convex"), 512, 0)
    for projection in (network.embedding_projection, network.head_projection):
        product = projection.weight @ projection.weight.T
        torch.testing.assert_close(product, torch.eye(96), rtol=0, atol=1e-5)
    assert not torch.equal(network.embedding_projection.weight, network.head_projection.weight)
    assert network.skip_weights.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("init", ["normal", "kaiming", "glorot"])
@pytest.mark.parametrize("name", SHAPES)
def test_two_more_layers_change_no_weight_of_another(name, init):
    shape = SHAPES[name].model_copy(update={"init": init, "n_embd": 12, "n_expert": 3, "embedding_projection": True})
    few, many = (dict(build_network(shape.model_copy(update={"n_layer": L}), 31, 7).named_parameters()) for L in (2, 4))
    assert len(many) > len(few) > 10
    for parameter, p in few.items():
        assert torch.equal(p, many[parameter]), parameter


def test_another_seed_gives_other_weights_and_the_same_seed_the_same():
    a, b, c = (dict(build_network(SHAPES["moe"], 31, seed).named_parameters()) for seed in (0, 0, 1))
    for name, p in a.items():
        assert torch.equal(p, b[name])
        assert p.ndim == 1 or not torch.equal(p, c[name]), name

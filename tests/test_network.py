import itertools
import math

import pytest
import torch

from model.gpt import GPT
from model.network import Network, rotate
from model.regularization import SITES

VOCAB = 31
SHAPE = GPT(n_layer=2, n_head=2, n_embd=12, context=8)
KINDS = {
    "norm": ["layernorm", "rmsnorm"],
    "position": ["learned", "rope"],
    "mlp": ["gelu", "relu", "relu2", "swiglu"],
    "bias": [False, True],
    "tied": [False, True],
}
ALL = [dict(zip(KINDS, values, strict=True)) for values in itertools.product(*KINDS.values())]


def built(seed=0, **values) -> Network:
    return SHAPE.model_copy(update=values).build(VOCAB, seed)


def tokens(B=2, T=8):
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(1))


def shaken(network):
    """Give every parameter, zero biases too, some value."""
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    return network


def count(network) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("values", ALL, ids=lambda v: "-".join(map(str, v.values())))
def test_a_later_token_changes_no_earlier_logit(values):
    network, x = shaken(built(**values)).eval(), tokens()
    before = network(x)
    assert before.shape == (2, 8, VOCAB)
    for t in (1, 4, 7):
        y = x.clone()
        y[:, t] = (y[:, t] + 1) % VOCAB
        after = network(y)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-6)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-3


def test_parameters_of_a_known_shape_count_as_by_hand():
    network = GPT(n_layer=2, n_head=4, n_embd=96, context=64).build(512, 0)
    block = 3 * 96 * 96 + 96 * 96 + 2 * (4 * 96) * 96 + 2 * 96  # qkv, proj, mlp, two norms
    assert count(network) == 512 * 96 + 64 * 96 + 2 * block + 96


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ({"bias": True}, 2 * (3 * 12 + 12 + 48 + 12 + 12 + 12) + 12),
        ({"tied": False}, VOCAB * 12),
        ({"position": "rope"}, -8 * 12),
        ({"norm": "rmsnorm"}, 0),
        ({"mlp": "swiglu", "bias": True}, 2 * (3 * 12 + 12 + 32 + 32 + 12 + 12 + 12) + 12),
        ({"n_head": 6}, 0),
        ({"n_layer": 3}, 12 * 12 * 12 + 2 * 12),
    ],
    ids=str,
)
def test_an_option_adds_the_parameters_that_it_names(values, more):
    assert count(built(**values)) - count(built()) == more


@pytest.mark.parametrize("width", [12, 48])
@pytest.mark.parametrize("ratio", [4.0, 2.0])
def test_all_kinds_of_mlp_have_equal_parameters(width, ratio):
    assert len({count(built(n_embd=width, mlp_ratio=ratio, mlp=kind)) for kind in KINDS["mlp"]}) == 1


def test_fused_attention_equals_attention_written_out():
    network = built()
    attention = network.blocks[0].attn
    q, k, v = torch.randn(3, 2, 2, 8, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    torch.testing.assert_close(attention.weighted(q, k, v, network), attention.fused(q, k, v))


def test_attention_equals_its_formula():
    attention = built().blocks[0].attn
    q, k, v = torch.randn(3, 1, 1, 5, 6, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    found = attention.fused(q, k, v)[0, 0]
    for t in range(5):
        weights = torch.tensor([math.exp(float(q[0, 0, t] @ k[0, 0, s]) / math.sqrt(6)) for s in range(t + 1)])
        weights = weights.double() / weights.double().sum()
        torch.testing.assert_close(found[t], weights @ v[0, 0, : t + 1], rtol=1e-6, atol=1e-6)


def test_rope_depends_on_the_distance_alone():
    network = SHAPE.model_copy(update={"position": "rope", "context": 64, "n_head": 1}).build(VOCAB, 0)
    q, k = torch.randn(2, 1, 1, 1, 12, generator=torch.Generator().manual_seed(0)).unbind(0)

    def product(at_q, at_k):
        parts = ((q, at_q), (k, at_k))
        q_, k_ = (rotate(x, network.cos[at : at + 1], network.sin[at : at + 1]) for x, at in parts)
        return float((q_ * k_).sum())

    assert product(9, 4) == pytest.approx(product(60, 55), abs=1e-5)
    assert product(9, 4) == pytest.approx(product(5, 0), abs=1e-5)
    assert product(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-5)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3
    torch.testing.assert_close(rotate(q, network.cos[7:8], network.sin[7:8]).norm(), q.norm())


def test_rope_turns_pair_i_by_position_over_theta_to_the_2i_over_d():
    network = SHAPE.model_copy(update={"position": "rope", "n_head": 1}).build(VOCAB, 0)
    for i in range(6):
        assert float(network.cos[5, i]) == pytest.approx(math.cos(5 * 10_000 ** (-2 * i / 12)), abs=1e-6)
        assert float(network.sin[5, i]) == pytest.approx(math.sin(5 * 10_000 ** (-2 * i / 12)), abs=1e-6)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("kind", KINDS["norm"])
def test_a_norm_equals_its_formula(kind, eps):
    norm = shaken(built(norm=kind, norm_eps=eps, bias=True)).norm
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)) * 0.5
    if kind == "layernorm":
        centred = x - x.mean(-1, keepdim=True)
        wanted = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias
    else:
        wanted = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight
        assert norm.bias is None
    torch.testing.assert_close(norm(x), wanted)


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("gelu", lambda h: h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))),
        ("relu", lambda h: h.clamp(min=0)),
        ("relu2", lambda h: h.clamp(min=0) ** 2),
    ],
)
def test_an_mlp_equals_its_formula(kind, activation):
    network = shaken(built(mlp=kind, bias=True)).eval()
    mlp, x = network.blocks[0].mlp, torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    wanted = activation(x @ mlp.fc.weight.T + mlp.fc.bias) @ mlp.proj.weight.T + mlp.proj.bias
    torch.testing.assert_close(mlp(x, network), wanted)


def test_swiglu_equals_its_formula():
    network = shaken(built(mlp="swiglu")).eval()
    mlp, x = network.blocks[0].mlp, torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    gate = x @ mlp.gate.weight.T
    wanted = (gate * torch.sigmoid(gate) * (x @ mlp.fc.weight.T)) @ mlp.proj.weight.T
    torch.testing.assert_close(mlp(x, network), wanted)


def test_a_tied_head_is_the_embedding():
    tied, free = built(tied=True), built(tied=False)
    assert tied.head is None
    with torch.no_grad():
        free.head.weight.copy_(free.wte.weight)
    torch.testing.assert_close(tied(tokens()), free(tokens()))


def test_weights_start_at_init_std_and_residual_projections_smaller():
    network = GPT(n_layer=8, n_embd=96, init_std=0.05).build(512, 0)
    for name, p in network.state_dict().items():
        if name.endswith("_dropout") or name == "key":
            continue
        if p.ndim == 2:
            wanted = 0.05 / (math.sqrt(16) if name.endswith("proj.weight") else 1)
            # five standard errors of a sample's standard deviation
            assert float(p.std()) == pytest.approx(wanted, rel=5 / math.sqrt(2 * p.numel())), name
            assert abs(float(p.mean())) < 5 * wanted / math.sqrt(p.numel()), name
        else:
            assert p.unique().tolist() == [1.0 if name.endswith("weight") else 0.0], name


def test_a_first_loss_is_that_of_a_uniform_guess():
    logits = GPT().build(512, 0)(torch.randint(512, (4, 64), generator=torch.Generator().manual_seed(0)))
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.arange(252) % 512)
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


@pytest.mark.parametrize("site", SITES)
def test_each_site_drops_in_training_and_nothing_drops_in_evaluation(site):
    network, x = shaken(built()), tokens()
    network.sites = frozenset({site})
    getattr(network, f"{site}_dropout").fill_(0.5)
    dropped = network.train()(x)
    network.key.fill_(7)
    other = network(x)
    kept = network.eval()(x)
    network.sites = frozenset()
    torch.testing.assert_close(kept, network.train()(x))
    assert (dropped - kept).abs().max() > 1e-2
    assert (dropped - other).abs().max() > 1e-2


def test_every_dropout_of_the_network_has_a_site_of_its_own(monkeypatch):
    import model.network

    network = GPT(n_layer=3, n_head=2, n_embd=12, context=8).build(VOCAB, 0)
    network.sites, used = frozenset(SITES), []
    monkeypatch.setattr(model.network, "dropout", lambda x, p, key, number: used.append(number) or x)
    network(tokens())
    assert sorted(used) == list(range(1 + 4 * 3))

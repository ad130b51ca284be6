import itertools
import math

import pytest
import torch

import model.nn.gpt
from model.data.tokenizer import END
from model.nn.architecture import GPT
from model.nn.attention import explicit_attention, fused_attention, rotate
from model.nn.context import ForwardContext
from model.nn.gpt import excess_kurtosis
from model.nn.linear import normalize
from model.nn.regularization import Regularization
from tests.support.packs import (
    OneRun,
    assert_nan_stays_with_its_run,
    assert_same,
    build_network,
    packed_pass,
    perturbed,
    random_tensor,
    single_pass,
)

VOCAB = 31
DROPOUTS = [name for name in Regularization().numbers() if name.endswith("_dropout")]
SHAPE = GPT(n_layer=2, n_head=2, n_embd=12, context=8)
KINDS = {
    "norm": ["layernorm", "rmsnorm"],
    "position": ["learned", "rope"],
    "mlp": ["gelu", "silu", "relu", "relu2", "swiglu"],
    "bias": [False, True],
    "tied": [False, True],
}
ALL = [dict(zip(KINDS, values, strict=True)) for values in itertools.product(*KINDS.values())]


def built(seed=0, **values) -> OneRun:
    return build_network(SHAPE.model_copy(update=values), VOCAB, seed)


def tokens(B=2, T=8):
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(1))


def passing(network) -> ForwardContext:
    return network.context(network.config.context)


def count(network) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("values", ALL, ids=lambda v: "-".join(map(str, v.values())))
def test_a_later_token_changes_no_earlier_logit(values):
    network, x = perturbed(built(**values)).eval(), tokens()
    before = network(x)
    assert before.shape == (2, 8, VOCAB)
    for t in (1, 4, 7):
        y = x.clone()
        y[:, t] = (y[:, t] + 1) % VOCAB
        after = network(y)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-6)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-3


def test_parameters_of_a_known_shape_count_as_by_hand():
    network = build_network(GPT(n_layer=2, n_head=4, n_embd=96, context=64), 512, 0)
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
        ({"norm_gain": "scalar"}, -5 * 11),
        ({"norm_gain": "none"}, -5 * 12),
        ({"embedding_norm": True}, 12),
        ({"final_norm": False}, -12),
        ({"embedding_projection": True}, 2 * 12 * 12),
        ({"skips": "convex", "n_layer": 6}, 4 * (12 * 12 * 12 + 2 * 12) + 3),
        ({"scale_embedding": True, "document_mask": True}, 0),
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
    q, k, v = torch.randn(3, 2, 2, 8, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    torch.testing.assert_close(explicit_attention(q, k, v, 0, passing(built())), fused_attention(q, k, v, None))


def test_attention_equals_its_formula():
    q, k, v = torch.randn(3, 1, 1, 5, 6, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    found = fused_attention(q, k, v, None)[0, 0]
    for t in range(5):
        weights = torch.tensor([math.exp(float(q[0, 0, t] @ k[0, 0, s]) / math.sqrt(6)) for s in range(t + 1)])
        weights = weights.double() / weights.double().sum()
        torch.testing.assert_close(found[t], weights @ v[0, 0, : t + 1], rtol=1e-6, atol=1e-6)


def test_rope_depends_on_the_distance_alone():
    network = build_network(SHAPE.model_copy(update={"position": "rope", "context": 64, "n_head": 1}), VOCAB, 0)
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
    network = build_network(SHAPE.model_copy(update={"position": "rope", "n_head": 1}), VOCAB, 0)
    for i in range(6):
        assert float(network.cos[5, i]) == pytest.approx(math.cos(5 * 10_000 ** (-2 * i / 12)), abs=1e-6)
        assert float(network.sin[5, i]) == pytest.approx(math.sin(5 * 10_000 ** (-2 * i / 12)), abs=1e-6)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("kind", KINDS["norm"])
def test_a_norm_equals_its_formula(kind, eps):
    norm = perturbed(built(norm=kind, norm_eps=eps, bias=True)).norm
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)) * 0.5
    if kind == "layernorm":
        centred = x - x.mean(-1, keepdim=True)
        wanted = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias
    else:
        wanted = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight
        assert not hasattr(norm, "bias")
    torch.testing.assert_close(norm(x), wanted)


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
    network = perturbed(built(mlp=kind, bias=True)).eval()
    mlp, x = network.blocks[0].mlp, torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    wanted = activation(x @ mlp.fc.weight.T + mlp.fc.bias) @ mlp.proj.weight.T + mlp.proj.bias
    torch.testing.assert_close(mlp(x, passing(network)), wanted)


def test_swiglu_equals_its_formula():
    network = perturbed(built(mlp="swiglu")).eval()
    mlp, x = network.blocks[0].mlp, torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    gate = x @ mlp.gate.weight.T
    wanted = (gate * torch.sigmoid(gate) * (x @ mlp.fc.weight.T)) @ mlp.proj.weight.T
    torch.testing.assert_close(mlp(x, passing(network)), wanted)


def test_a_tied_head_is_the_embedding():
    tied, free = built(tied=True), built(tied=False)
    assert tied.head is None
    with torch.no_grad():
        free.head.weight.copy_(free.wte.weight)
    torch.testing.assert_close(tied(tokens()), free(tokens()))


def test_a_first_loss_is_that_of_a_uniform_guess():
    logits = build_network(GPT(), 512, 0)(torch.randint(512, (4, 64), generator=torch.Generator().manual_seed(0)))
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.arange(252) % 512)
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


@pytest.mark.parametrize("gain", ["scalar", "none"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS["norm"])
def test_a_norm_with_one_gain_or_none_equals_its_formula(kind, bias, gain):
    norm = perturbed(built(norm=kind, norm_gain=gain, norm_eps=0.1, bias=bias)).norm
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


def embedded(network, x):
    """Return the residual stream before the first block."""
    return network.embed(x, network.context(x.shape[1]))


def test_embeddings_are_scaled_placed_projected_and_normalised_in_this_order():
    network, x = perturbed(built(scale_embedding=True, embedding_projection=True, embedding_norm=True)), tokens()
    wanted = network.wte.weight[x] * math.sqrt(12) + network.wpe.weight[:8]
    wanted = wanted @ network.embedding_projection.weight.T
    torch.testing.assert_close(embedded(network, x), network.embedding_norm(wanted))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("final_norm", [False, True])
def test_the_head_sees_the_stream_normalised_then_projected(final_norm, tied):
    network, x = perturbed(built(final_norm=final_norm, embedding_projection=True, tied=tied)), tokens()
    stream = network.run(embedded(network, x), passing(network))
    stream = network.norm(stream) if final_norm else stream
    head = network.wte.weight if tied else network.head.weight
    torch.testing.assert_close(network(x), stream @ network.head_projection.weight.T @ head.T)


@pytest.mark.parametrize("L", [2, 4, 8])
@pytest.mark.parametrize("skips", ["additive", "convex"])
def test_skips_equal_the_loop_written_out(skips, L):
    network, x = perturbed(built(n_layer=L, skips=skips)), tokens()
    stream, kept = embedded(network, x), {}
    for i in range(L // 2):
        kept[i] = stream = network.blocks[i](stream, passing(network))
    for i in range(L // 2, L):
        stream, s = network.blocks[i](stream, passing(network)), L - 1 - i
        a = network.skip_weights[s]
        if skips == "additive":
            stream = stream + a * kept[s]
        else:
            stream = (1 - torch.sigmoid(a)) * stream + torch.sigmoid(a) * kept[s]
    wanted = network.norm(stream) @ network.wte.weight.T
    torch.testing.assert_close(network(x), wanted)
    probe, named = random_tensor(2, 8, VOCAB), list(network.parameters())
    found = torch.autograd.grad((network(x) * probe).sum(), named)
    for a, b in zip(found, torch.autograd.grad((wanted * probe).sum(), named), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_additive_skips_start_as_no_skips_and_convex_ones_as_half_of_each():
    x, plain = tokens(), built()
    assert torch.equal(built(skips="additive")(x), plain(x))
    first = plain.blocks[0](embedded(plain, x), passing(plain))
    second = plain.blocks[1](first, passing(plain))
    wanted = plain.norm((first + second) / 2) @ plain.wte.weight.T
    torch.testing.assert_close(built(skips="convex")(x), wanted)


OPTIONS = [
    {},
    {"norm_gain": "scalar", "bias": True, "skips": "convex", "embedding_projection": True, "mlp": "silu"},
    {"norm_gain": "none", "norm": "rmsnorm", "embedding_norm": True, "final_norm": False, "tied": False},
    {"position": "rope", "scale_embedding": True, "skips": "additive", "mlp": "swiglu"},
]
NUMBERS = list(Regularization().numbers())


@pytest.mark.parametrize("values", OPTIONS, ids=lambda values: "-".join(values))
@pytest.mark.parametrize("active", [(), *((name,) for name in NUMBERS), tuple(NUMBERS)], ids=lambda a: "-".join(a[:1]))
def test_a_run_side_by_side_equals_the_run_alone_and_a_zero_is_exactly_nothing(values, active):
    networks = [perturbed(built(seed, **values)) for seed in range(3)]
    for k, network in enumerate(networks):
        network.active = frozenset(active)
        network.key.fill_(7 * k)
        for name in active:
            network.get_buffer(name).fill_([0.5, 0.1, 0.0][k])
    x, notes = torch.stack([tokens(), tokens().flip(1), tokens()]), ("kurtosis", "attention_entropy")
    for k, seen in enumerate(packed_pass(networks, x, notes)):
        assert_same(seen, single_pass(networks[k], x[k], notes), 2e-5)
    exact = active != ("attention_dropout",) and len(active) < 2  # with it, attention is written out
    before = single_pass(networks[2], x[2])
    networks[2].active = frozenset()
    after = single_pass(networks[2], x[2])
    assert_same(before, after)
    if exact:
        assert torch.equal(before.logits, after.logits)
        assert all(torch.equal(before.grads[name], after.grads[name]) for name in after.grads)


def test_a_run_of_nan_leaves_every_bit_of_its_neighbours():
    networks = [perturbed(built(seed, skips="convex")) for seed in range(3)]
    for network in networks:
        network.active = frozenset(NUMBERS)
        for name in NUMBERS:
            network.get_buffer(name).fill_(0.2)
    x = torch.stack([tokens()] * 3)
    assert_nan_stays_with_its_run(networks, x)


def noisy(name: str, value: float, **values) -> OneRun:
    network = built(**values)
    network.active = frozenset({name})
    network.get_buffer(name).fill_(value)
    return network


@pytest.mark.parametrize("scale_embedding", [False, True])
def test_embedding_noise_is_gaussian_of_its_share_of_each_embedding(scale_embedding):
    network = noisy("embedding_noise", 0.5, context=64, n_embd=96, scale_embedding=scale_embedding)
    with torch.no_grad():
        network.wte.weight *= torch.linspace(0.1, 10, VOCAB)[:, None]
        network.wpe.weight.zero_()
    x = torch.randint(VOCAB, (16, 64), generator=torch.Generator().manual_seed(0))
    clean = network.wte.weight[x] * (math.sqrt(96) if scale_embedding else 1)
    noise = ((embedded(network, x) - clean) / clean.pow(2).mean(-1, keepdim=True).sqrt()).detach()
    n = noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=5 * 0.5 / math.sqrt(n))
    assert noise.std().item() == pytest.approx(0.5, rel=5 / math.sqrt(2 * n))
    assert excess_kurtosis(noise.view(1, -1, 96)).item() == pytest.approx(0, abs=5 * math.sqrt(24 / n))
    rows = noise.std(-1)  # equal for small and large embeddings
    assert rows.min() > 0.3
    assert rows.max() < 0.7
    assert torch.equal(embedded(network, x), embedded(network, x))
    network.key.fill_(1)
    assert (embedded(network, x) - clean - noise).abs().max() > 0.1
    torch.testing.assert_close(embedded(network.eval(), x), clean)


def test_masked_tokens_are_replaced_in_the_input_in_training_alone(monkeypatch):
    network, x, seen = noisy("mask_tokens", 0.5), tokens(64), []
    look_up = model.nn.gpt.look_up
    monkeypatch.setattr(model.nn.gpt, "look_up", lambda table, ids: seen.append(ids[0]) or look_up(table, ids))
    network(x)
    assert 0.35 < (seen[0] != x).float().mean() < 0.65
    assert torch.equal(seen[0] == END, x == END)
    network.eval()(x)
    assert torch.equal(seen[1], x)


def test_kurtosis_is_that_of_the_stream_after_each_block():
    x = random_tensor(200, 1000)
    assert excess_kurtosis(x[None]).item() == pytest.approx(0, abs=5 * math.sqrt(24 / x.numel()))
    assert excess_kurtosis(torch.linspace(-3, 7, 100_001).view(1, -1, 1)).item() == pytest.approx(
        -1.2, abs=1e-3
    )  # uniform
    network, notes = perturbed(built(n_layer=4, skips="additive")), {"kurtosis": []}
    network(tokens(), notes)
    stream = network.run(embedded(network, tokens()), passing(network))
    assert len(notes["kurtosis"]) == 4
    y = stream.detach().double().flatten()
    wanted = ((y - y.mean()) ** 4).mean() / y.var(correction=0) ** 2 - 3
    assert notes["kurtosis"][-1].item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_site_drops_in_training_and_nothing_drops_in_evaluation(name):
    network, x = perturbed(built()), tokens()
    network.active = frozenset({name})
    getattr(network, name).fill_(0.5)
    dropped = network.train()(x)
    network.key.fill_(7)
    other = network(x)
    kept = network.eval()(x)
    network.active = frozenset()
    torch.testing.assert_close(kept, network.train()(x))
    assert (dropped - kept).abs().max() > 1e-2
    assert (dropped - other).abs().max() > 1e-2


def test_every_dropout_of_the_network_has_a_site_of_its_own(monkeypatch):
    import model.nn.context

    network = build_network(GPT(n_layer=3, n_head=2, n_embd=12, context=8), VOCAB, 0)
    network.active, used = frozenset(DROPOUTS), []
    monkeypatch.setattr(model.nn.context, "dropout", lambda x, p, key, number: used.append(number) or x)
    network(tokens())
    assert sorted(used) == [*range(1 + 4 * 3), 65_536]

import itertools
import math

import pytest
import torch

import model.nn.gpt
from model.data.tokenizer import END
from model.nn.architecture import GPT
from model.nn.gpt import excess_kurtosis
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
from tests.support.small_gpt import KINDS, VOCAB, count, passing, small_gpt, tokens

DROPOUTS = [name for name in Regularization().numbers() if name.endswith("_dropout")]
ALL = [dict(zip(KINDS, values, strict=True)) for values in itertools.product(*KINDS.values())]


@pytest.mark.parametrize("values", ALL, ids=lambda v: "-".join(map(str, v.values())))
def test_a_later_token_changes_no_earlier_logit(values):
    network, x = perturbed(small_gpt(**values)).eval(), tokens()
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
    assert count(small_gpt(**values)) - count(small_gpt()) == more


def test_a_tied_head_is_the_embedding():
    tied, free = small_gpt(tied=True), small_gpt(tied=False)
    assert tied.head is None
    with torch.no_grad():
        free.head.weight.copy_(free.wte.weight)
    torch.testing.assert_close(tied(tokens()), free(tokens()))


def test_a_first_loss_is_that_of_a_uniform_guess():
    logits = build_network(GPT(), 512, 0)(torch.randint(512, (4, 64), generator=torch.Generator().manual_seed(0)))
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.arange(252) % 512)
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


def embedded(network, x):
    """Return the residual stream before the first block."""
    return network.embed(x, network.context(x.shape[1]))


def test_embeddings_are_scaled_placed_projected_and_normalised_in_this_order():
    network, x = perturbed(small_gpt(scale_embedding=True, embedding_projection=True, embedding_norm=True)), tokens()
    wanted = network.wte.weight[x] * math.sqrt(12) + network.wpe.weight[:8]
    wanted = wanted @ network.embedding_projection.weight.T
    torch.testing.assert_close(embedded(network, x), network.embedding_norm(wanted))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("final_norm", [False, True])
def test_the_head_sees_the_stream_normalised_then_projected(final_norm, tied):
    network, x = perturbed(small_gpt(final_norm=final_norm, embedding_projection=True, tied=tied)), tokens()
    stream = network.run(embedded(network, x), passing(network))
    stream = network.norm(stream) if final_norm else stream
    head = network.wte.weight if tied else network.head.weight
    torch.testing.assert_close(network(x), stream @ network.head_projection.weight.T @ head.T)


@pytest.mark.parametrize("L", [2, 4, 8])
@pytest.mark.parametrize("skips", ["additive", "convex"])
def test_skips_equal_the_loop_written_out(skips, L):
    network, x = perturbed(small_gpt(n_layer=L, skips=skips)), tokens()
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
    x, plain = tokens(), small_gpt()
    assert torch.equal(small_gpt(skips="additive")(x), plain(x))
    first = plain.blocks[0](embedded(plain, x), passing(plain))
    second = plain.blocks[1](first, passing(plain))
    wanted = plain.norm((first + second) / 2) @ plain.wte.weight.T
    torch.testing.assert_close(small_gpt(skips="convex")(x), wanted)


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
    networks = [perturbed(small_gpt(seed, **values)) for seed in range(3)]
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


def test_a_run_of_nan_changes_no_bit_of_its_neighbours():
    networks = [perturbed(small_gpt(seed, skips="convex")) for seed in range(3)]
    for network in networks:
        network.active = frozenset(NUMBERS)
        for name in NUMBERS:
            network.get_buffer(name).fill_(0.2)
    x = torch.stack([tokens()] * 3)
    assert_nan_stays_with_its_run(networks, x)


def noisy(name: str, value: float, **values) -> OneRun:
    network = small_gpt(**values)
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
    network, notes = perturbed(small_gpt(n_layer=4, skips="additive")), {"kurtosis": []}
    network(tokens(), notes)
    stream = network.run(embedded(network, tokens()), passing(network))
    assert len(notes["kurtosis"]) == 4
    y = stream.detach().double().flatten()
    wanted = ((y - y.mean()) ** 4).mean() / y.var(correction=0) ** 2 - 3
    assert notes["kurtosis"][-1].item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_site_drops_in_training_and_nothing_drops_in_evaluation(name):
    network, x = perturbed(small_gpt()), tokens()
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

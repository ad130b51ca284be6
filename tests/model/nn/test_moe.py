import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from model.nn.architecture import MoE
from model.nn.moe import experts, grouped_mm, route
from model.train.trainer import Trainer
from tests.support.packs import (
    OneRun,
    Part,
    assert_same,
    build_network,
    packed_pass,
    perturbed,
    random_tensor,
    single_pass,
    stacked,
)
from tests.support.tiny import alone as trained
from tests.support.tiny import curves, tiny

VOCAB = 31
SHAPE = MoE(n_layer=2, n_head=2, n_embd=12, context=8, n_expert=4, position="rope")
C, E, N = 12, 4, 16
ACTIVATIONS = {
    "silu": lambda h: h * torch.sigmoid(h),
    "relu2": lambda h: h.clamp(min=0) ** 2,
    "gelu": lambda h: h * 0.5 * (1 + torch.erf(h / math.sqrt(2))),
}


def built(seed: int = 0, **values) -> OneRun:
    return perturbed(build_network(SHAPE.model_copy(update=values), VOCAB, seed))


def tokens(K: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (K, 2, 8), generator=torch.Generator().manual_seed(1))


def slow(layer: Part, x: torch.Tensor) -> torch.Tensor:
    """Compute a mixture token by token and expert by expert."""
    config, rows = layer.owner[0].config, []
    for row in x.flatten(0, 1):
        logits = layer.router.weight @ row
        chosen = sorted(range(config.n_expert), key=lambda e: -float(logits[e].detach()))[: config.top_k]
        best = [logits[e].exp() for e in chosen]
        total = sum(best) if config.top_k > 1 else logits.exp().sum()
        y = torch.zeros_like(row)
        for e, weight in zip(chosen, best, strict=True):
            if config.mlp != "swiglu":
                h = ACTIVATIONS[config.mlp](layer.fc[e] @ row)
            else:
                h = ACTIVATIONS["silu"](layer.gate[e] @ row) * (layer.fc[e] @ row)
            y = y + weight / total * (layer.proj[e] @ h)
        rows.append(y)
    return torch.stack(rows).view(x.shape)


def gradients(y, x, layer):
    return torch.autograd.grad((y * random_tensor(*y.shape, seed=9)).sum(), [x, *layer.parameters()])


CASES = [("silu", 2), ("silu", 1), ("swiglu", 2), ("swiglu", 4), ("relu2", 3), ("gelu", 2)]


@pytest.mark.parametrize(("mlp", "top_k"), CASES)
def test_a_mixture_equals_a_loop_over_tokens_and_experts_with_all_gradients(mlp, top_k):
    network = built(mlp=mlp, top_k=top_k).eval()
    layer, x = network.blocks[0].mlp, random_tensor(2, 8, C).requires_grad_()
    found, wanted = layer(x, network.context(8)), slow(layer, x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    pairs = zip(gradients(found, x, layer), gradients(wanted, x, layer), strict=True)
    for a, b in pairs:
        assert float(b.abs().max()) > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mlp", "top_k"), CASES)
def test_mixtures_side_by_side_equal_the_loop_with_all_gradients(mlp, top_k):
    networks = [built(seed, mlp=mlp, top_k=top_k).eval() for seed in range(3)]
    layers = [network.blocks[0].mlp for network in networks]
    x = random_tensor(3, 2, 8, C).requires_grad_()
    weights = stacked(networks, "weights")
    names = [f"blocks.0.mlp.{name}" for name, _ in layers[0].named_parameters()]
    leaves = {name: weights[name].requires_grad_() for name in names}
    ctx = networks[0].context(8)._replace(shape=(3, 2, 8))
    found = experts(x.flatten(1, 2), leaves, 0, networks[0].config, ctx).view(x.shape)
    probe = random_tensor(2, 8, C, seed=9)
    grads = torch.autograd.grad((found * probe).sum(), [x, *leaves.values()])
    for k, layer in enumerate(layers):
        own = x[k].detach().requires_grad_()
        wanted = slow(layer, own)
        torch.testing.assert_close(found[k], wanted, rtol=1e-5, atol=1e-5)
        for a, b in zip(grads, gradients(wanted, own, layer), strict=True):
            torch.testing.assert_close(a[k], b, rtol=1e-4, atol=1e-5)


def grouped_mm_flops(rows, matrices, *_, **__):
    """Return the operations of a product in which each row meets one matrix, which torch does not count."""
    return 2 * rows[0] * matrices[-2] * matrices[-1]


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("K", [1, 3])
def test_each_expert_computes_its_own_tokens_and_no_others(top_k, K):
    network = built(top_k=top_k).eval()
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.hpo.grouped_mm: grouped_mm_flops})
    ctx = network.context(8)._replace(shape=(K, 2, 8))
    with torch.no_grad(), counter:
        experts(random_tensor(K, N, C), stacked([network] * K, "weights"), 0, network.config, ctx)
    products = 2 * (2 * N * top_k * C * 4 * C)  # two matrices, a multiplication and an addition each
    assert counter.get_total_flops() == K * (2 * N * C * E + products)


def test_an_expert_without_tokens_is_no_trouble():
    network = built().eval()
    layer = network.blocks[0].mlp
    with torch.no_grad():
        layer.router.weight.zero_()[1:3] = 1.0
    x = random_tensor(2, 8, C).abs().requires_grad_()
    y = layer(x, network.context(8))
    torch.testing.assert_close(y, slow(layer, x), rtol=1e-5, atol=1e-5)
    _, _, fc, _ = gradients(y, x, layer)
    assert [bool(part.any()) for part in fc] == [False, True, True, False]


@pytest.mark.parametrize("values", [{}, {"mlp": "swiglu", "top_k": 1}, {"skips": "convex", "document_mask": True}])
@pytest.mark.parametrize("active", [(), ("balance",), ("balance", "router_noise", "mlp_dropout", "residual_dropout")])
def test_a_mixture_side_by_side_equals_itself_alone(values, active):
    networks = [built(seed, **values) for seed in range(3)]
    for k, network in enumerate(networks):
        network.active = frozenset(active)
        network.key.fill_(k)
        for name in active:  # the last run has none of it
            network.get_buffer(name).fill_([0.3, 0.1, 0.0][k])
    x, notes = tokens(3), ("balance", "expert_load")
    for k, seen in enumerate(packed_pass(networks, x, notes)):
        assert_same(seen, single_pass(networks[k], x[k], notes))
    networks[2].active = frozenset()
    calm = single_pass(networks[2], x[2], notes)
    networks[2].active = frozenset(active)
    still = single_pass(networks[2], x[2], notes)
    assert torch.equal(calm.logits, still.logits)
    assert all(torch.equal(calm.grads[name], still.grads[name]) for name in calm.grads)


def test_router_noise_is_gaussian_of_its_size_and_acts_in_training_alone(monkeypatch):
    network = build_network(MoE(n_layer=1, n_head=2, n_embd=12, context=8, n_expert=8), VOCAB, 0)
    network.active = frozenset({"router_noise"})
    network.router_noise.fill_(0.7)
    with torch.no_grad():
        network.blocks[0].mlp.router.weight.zero_()
    seen = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, k: (seen.append(x), topk(x, k))[1])
    x = torch.randint(VOCAB, (500, 8))
    network(x)
    noise = seen[-1].detach().flatten()
    assert float(noise.mean()) == pytest.approx(0, abs=5 * 0.7 / math.sqrt(32000))
    assert float(noise.std()) == pytest.approx(0.7, rel=5 / math.sqrt(2 * 32000))
    network(x)
    assert torch.equal(seen[-1].flatten(), noise)
    network.key.fill_(1)
    network(x)
    assert not torch.equal(seen[-1].flatten(), noise)
    network.eval()(x)
    assert not seen[-1].any()


def test_the_layers_of_a_network_have_noise_of_their_own(monkeypatch):
    import model.nn.moe

    network, sites = built(), []
    network.active = frozenset({"router_noise"})
    monkeypatch.setattr(model.nn.moe, "random_normal", lambda n, key, site: sites.append(site) or torch.zeros(1, n))
    network(tokens()[0])
    assert sites == [131_072, 131_073]


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_balance_loss_is_experts_times_load_times_probability(top_k):
    network = built(top_k=top_k)
    network.active = frozenset({"balance"})
    network.balance.fill_(0.25)
    layer, x = network.blocks[0].mlp, random_tensor(2, 8, C)
    notes = {"balance": [], "expert_load": []}
    layer(x, network.context(8, diagnostics=notes))
    probabilities = F.linear(x.flatten(0, 1), layer.router.weight).softmax(-1).detach()
    load = torch.zeros(E)
    for row in probabilities:
        for e in row.argsort(descending=True)[:top_k]:
            load[e] += 1 / (N * top_k)
    torch.testing.assert_close(notes["expert_load"][0][0], load)
    wanted = 0.25 * E * sum(float(f) * float(p) for f, p in zip(load, probabilities.mean(0), strict=True))
    assert notes["balance"][0].item() == pytest.approx(wanted, rel=1e-5)


def test_the_balance_loss_is_its_weight_where_all_is_even_and_more_where_it_is_not():
    network = built()
    network.active = frozenset({"balance"})
    network.balance.fill_(0.01)
    layer, notes = network.blocks[0].mlp, {"balance": []}
    with torch.no_grad():
        layer.router.weight.zero_()
    layer(random_tensor(2, 8, C), network.context(8, diagnostics=notes))
    assert notes["balance"][0].item() == pytest.approx(0.01)
    with torch.no_grad():
        layer.router.weight[0] = 10.0
    layer(random_tensor(2, 8, C).abs(), network.context(8, diagnostics=notes))
    assert notes["balance"][1].item() == pytest.approx(0.02, rel=1e-3)  # half of all assignments, all the probability


def test_the_load_sums_to_one_and_the_balance_is_noted_in_training_alone():
    network, x = built(), tokens()[0]
    network.active = frozenset({"balance"})
    network.balance.fill_(0.01)
    notes = {"balance": [], "expert_load": []}
    network(x, notes)
    assert len(notes["balance"]) == 2
    assert all(b.shape == () and b.requires_grad for b in notes["balance"])
    network.eval()(x, notes)
    assert len(notes["balance"]) == 2
    assert [float(load.sum()) for load in notes["expert_load"]] == pytest.approx([1.0] * 4)
    assert all(load.shape == (E,) for load in notes["expert_load"])
    network.train().active = frozenset()
    network(x, notes)
    assert len(notes["balance"]) == 2


def test_the_balance_loss_spreads_the_tokens():
    network = built(n_layer=1)
    network.active = frozenset({"balance"})
    network.balance.fill_(1.0)
    layer, x = network.blocks[0].mlp, random_tensor(8, 8, C) + 1
    found = []
    for _ in range(200):
        notes = {"balance": [], "expert_load": []}
        layer(x, network.context(8, diagnostics=notes))
        (grad,) = torch.autograd.grad(notes["balance"][0], layer.router.weight)
        with torch.no_grad():
            layer.router.weight -= 0.1 * grad
        found.append(notes["expert_load"][0].max().item())
    assert found[0] > 0.4
    assert found[-1] < 0.35


def test_the_router_computes_in_fp32_under_autocast():
    network = built().eval()
    x, weight = random_tensor(1, N, C), network.blocks[0].mlp.router.weight[None]
    with torch.autocast("cpu", torch.bfloat16):
        half = route(x, weight, 0, network.config, network.context(8))
    full = route(x, weight, 0, network.config, network.context(8))
    assert all(torch.equal(a, b) for a, b in zip(half, full, strict=True))


TINY = {"model.name": "moe", "model.n_expert": 4, "model.norm": "rmsnorm", "model.position": "rope"}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_mixture_trained_in_a_pack_equals_the_run_alone(dropout):
    own = [
        {"run.seed": 1, "run.grad_accum": 2},
        {"model.router_noise": 0.0, "model.balance": 0.0},
        {"model.router_noise": 0.5, "model.balance": 0.1, "optimizer.lr": 1e-2},
    ]
    configs = [tiny(TINY | {"regularization.dropout": dropout} | values) for values in own]
    found = curves(Trainer(configs))
    for lane, config in enumerate(configs):
        for a, b in zip(found[lane], trained(config), strict=True):
            assert a.val_loss == pytest.approx(b.val_loss, rel=1e-5)
            assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5)


def test_a_mixture_that_diverges_changes_no_bit_of_its_neighbours():
    free = TINY | {"clip.name": "none"}
    calm = [tiny(free | {"run.seed": seed}) for seed in range(3)]
    wild = tiny(free | {"optimizer.lr": 1e30, "schedule.warmup": 0.0, "run.seed": 1})
    wanted, found = curves(Trainer(calm)), curves(Trainer([calm[0], wild, calm[2]]))
    assert math.isnan(found[1][-1].val_loss)
    assert found[0] == wanted[0]
    assert found[2] == wanted[2]


def test_padding_has_no_part_in_what_layers_say_of_themselves():
    shape = MoE(n_layer=2, n_head=2, n_embd=16, context=12, n_expert=4, top_k=2, balance=1.0)
    network = build_network(shape, 20, 0)
    network.active = frozenset({"balance"})
    network.balance.fill_(1.0)
    network.network.padded = True
    rows = [torch.tensor([0, 5, 6, 7, 8, 9, 3]), torch.tensor([0, 4, 2]), torch.tensor([11, 12])]  # the last goes on
    padded = torch.stack([torch.cat([row, torch.zeros(12 - len(row), dtype=torch.long)]) for row in rows])
    keys = ("balance", "attention_entropy", "expert_load", "kurtosis")
    found = {key: [] for key in keys}
    network(padded, found)
    tokens = sum(len(row) for row in rows)
    each = []
    for row in rows:
        notes = {key: [] for key in keys}
        network(row[None], notes)
        each.append((len(row), notes))
    for layer in range(2):
        load = sum(n * notes["expert_load"][layer] for n, notes in each) / tokens
        torch.testing.assert_close(found["expert_load"][layer], load)
        entropy = sum(n * notes["attention_entropy"][layer] for n, notes in each) / tokens
        torch.testing.assert_close(found["attention_entropy"][layer], entropy)
    # The first layer's balance loss from its router's logits on real tokens alone.
    block, probabilities = network.blocks[0], []
    for row in rows:
        h = network.embed(row[None], network.context(len(row)))
        h = h + block.attn(block.norm1(h), network.context(len(row)))
        probabilities.append(block.mlp.router(block.norm2(h))[0].softmax(-1))
    mean = torch.cat(probabilities).mean(0)
    torch.testing.assert_close(found["balance"][0], 4 * (found["expert_load"][0] * mean).sum())


def test_the_gradient_of_three_experts_per_token_does_not_depend_on_the_order_of_threads():
    config = SHAPE.model_copy(update={"n_embd": 64, "context": 1024, "n_expert": 8, "top_k": 3})
    network = build_network(config, VOCAB, 0)
    x, w, ctx = random_tensor(1, 2048, 64).requires_grad_(), network.weights(), network.context(2048)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        grads = [torch.autograd.grad(experts(x, w, 0, config, ctx).sum(), x)[0] for _ in range(40)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(grads[0], grad) for grad in grads)


def test_grouped_products_of_rows_and_of_columns_can_be_traced():
    offsets = torch.tensor([3, 3, 8], dtype=torch.int32)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    for a, b in (((8, 4), (3, 4, 12)), ((4, 8), (8, 12))):
        torch.library.opcheck(grouped_mm, (random_tensor(*a), random_tensor(*b), offsets), test_utils=checks)
    a, b = random_tensor(8, 4).requires_grad_(), random_tensor(3, 4, 12).requires_grad_()
    torch.library.opcheck(grouped_mm, (a, b, offsets), test_utils=checks)

import math

import pytest
import torch

from model.data.tokenizer import END
from model.nn.attention import document_mask, explicit_attention, fused_attention, rotate
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
from tests.support.small_gpt import SHAPE, VOCAB, passing, small_gpt

# No row begins with a document but the second; the third has two end tokens in a row and one at its end.
ROWS = torch.tensor([[5, 6, END, 7, 8, 9, END, 4], [END, 5, 5, 5, END, 6, 7, 8], [3, END, END, 4, 4, 4, 4, END]])


def built(seed: int = 0, **values) -> OneRun:
    return perturbed(build_network(SHAPE.model_copy(update={"document_mask": True} | values), VOCAB, seed))


def pieces(row: torch.Tensor) -> list[torch.Tensor]:
    """Cut a row before each of its end tokens."""
    begins = sorted({0, *(row == END).nonzero().flatten().tolist()})
    return [row[a:b] for a, b in zip(begins, [*begins[1:], len(row)], strict=True)]


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_masked_documents_equal_a_pass_for_each_with_all_gradients(position, explicit):
    network = built(position=position)
    network.network.explicit = explicit
    found = single_pass(network, ROWS)
    logits = [torch.cat([network(piece[None])[0] for piece in pieces(row)]) for row in ROWS]
    wanted = torch.stack(logits)
    torch.testing.assert_close(found.logits, wanted, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad((wanted * random_tensor(*wanted.shape)).sum(), list(network.parameters()))
    for grad, (name, a) in zip(grads, found.grads.items(), strict=True):
        torch.testing.assert_close(a, grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_without_a_mask_documents_see_each_other(position):
    masked, free = built(position=position), built(position=position, document_mask=False)
    before, after = masked(ROWS), free(ROWS)
    torch.testing.assert_close(before[0, :2], after[0, :2])
    assert (before[0, 2:] - after[0, 2:]).abs().max() > 1e-2


@pytest.mark.parametrize("same_tokens", [False, True])
@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("explicit", [False, True])
def test_masked_documents_side_by_side_equal_a_run_alone(explicit, position, same_tokens):
    networks = [built(seed, position=position) for seed in range(3)]
    for network in networks:
        network.network.explicit = explicit
    x = torch.stack([ROWS, ROWS.flip(1), ROWS.roll(3, 1)])
    seen = packed_pass(networks, ROWS if same_tokens else x)
    for k, network in enumerate(networks):
        assert_same(seen[k], single_pass(network, ROWS if same_tokens else x[k]))


def test_a_run_of_nan_changes_no_bit_of_its_neighbours():
    networks = [built(seed) for seed in range(3)]
    x = ROWS.expand(3, -1, -1)
    assert_nan_stays_with_its_run(networks, x)


def test_a_mask_is_of_the_document_and_of_the_past():
    mask = document_mask(ROWS)
    assert mask.shape == (3, 1, 8, 8)
    for b, row in enumerate(ROWS.tolist()):
        for q in range(8):
            for k in range(8):
                wanted = k <= q and END not in row[k + 1 : q + 1]
                assert bool(mask[b, 0, q, k]) == wanted


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_explicit_attention_equals_fused_attention(dropout):
    network = built(document_mask=False)
    network.active = frozenset({"residual_dropout"})
    network.residual_dropout.fill_(dropout)
    fused = single_pass(network, ROWS)
    network.network.explicit = True
    assert_same(single_pass(network, ROWS), fused)


def test_explicit_attention_calls_no_fused_kernel(monkeypatch):
    network, calls = built(), []
    monkeypatch.setattr("model.nn.attention.fused_attention", lambda *args: calls.append(1) or args[0])
    network(ROWS)
    assert len(calls) == 2
    network.network.explicit = True
    network(ROWS)
    assert len(calls) == 2


def entropies(network: OneRun, x: torch.Tensor) -> list[float]:
    """Return the mean entropy of each layer, computed query by query."""
    found, ctx, H = [], network.context(x.shape[1]), network.config.n_head
    ctx = ctx._replace(mask=document_mask(x) if network.config.document_mask else None)
    stream = network.embed(x, ctx)
    for block in network.blocks.children():
        y = block.norm1(stream)
        D = y.shape[2] // H
        q, k, _ = block.attn.qkv(y).detach().chunk(3, -1)
        nats, n = 0.0, 0
        for b in range(len(y)):
            for h in range(H):
                for t in range(y.shape[1]):
                    first = max((s for s in range(t + 1) if x[b, s] == END), default=0)
                    seen = k[b, first if network.config.document_mask else 0 : t + 1, h * D : (h + 1) * D]
                    p = (seen @ q[b, t, h * D : (h + 1) * D] / math.sqrt(D)).double().softmax(0)
                    nats, n = nats - float((p * p.log()).sum()), n + 1
        found.append(nats / n)
        stream = block(stream, ctx)
    return found


@pytest.mark.parametrize("document_mask", [False, True])
def test_attention_entropy_is_that_of_the_softmax_written_out(document_mask):
    network, notes = built(document_mask=document_mask).eval(), {"attention_entropy": []}
    network(ROWS, notes)
    assert [float(e) for e in notes["attention_entropy"]] == pytest.approx(entropies(network, ROWS), rel=1e-5)


def test_even_attention_has_the_mean_log_of_what_is_seen_as_its_entropy():
    network, notes = built(document_mask=False), {"attention_entropy": []}
    with torch.no_grad():
        for block in network.blocks.children():
            block.attn.qkv.weight.zero_()
    network(ROWS, notes)
    wanted = sum(math.log(t + 1) for t in range(8)) / 8
    assert [float(e) for e in notes["attention_entropy"]] == pytest.approx([wanted] * 2)


def test_notes_change_no_bit_of_the_logits_and_are_the_same_side_by_side():
    keys = ("attention_entropy", "kurtosis")
    networks = [built(seed, skips="additive").eval() for seed in range(2)]
    for network in networks:
        assert torch.equal(network(ROWS), network(ROWS, {key: [] for key in keys}))
    for seen, network in zip(packed_pass(networks, ROWS, keys), networks, strict=True):
        assert_same(seen, single_pass(network, ROWS, keys))
        assert [len(seen.diagnostics[key]) for key in keys] == [2, 2]
        assert not any(note.requires_grad for key in keys for note in seen.diagnostics[key])


def test_fused_attention_equals_attention_written_out():
    q, k, v = torch.randn(3, 2, 2, 8, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    torch.testing.assert_close(explicit_attention(q, k, v, 0, passing(small_gpt())), fused_attention(q, k, v, None))


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

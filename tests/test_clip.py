import pytest
import torch

from model.clip import NoClip, Norm, clip

INF = float("inf")


@pytest.mark.parametrize("limit", [1e-3, 1.0, 5.0, 1e6])
def test_clipping_equals_that_of_torch(limit):
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate([(3, 5), (7,)])]
    parameters = [torch.nn.Parameter(torch.zeros_like(t)) for t in tensors]
    for p, t in zip(parameters, tensors, strict=True):
        p.grad = t.clone()
    wanted_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    row = torch.cat([t.flatten() for t in tensors])
    grad = torch.stack([row, 10 * row])  # a neighbour with another norm and limit
    norms, clipped = clip(grad, torch.tensor([limit, INF]))
    torch.testing.assert_close(norms[0], wanted_norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad[0], torch.cat([p.grad.flatten() for p in parameters]), rtol=1e-6, atol=0)
    assert clipped.tolist() == [bool(wanted_norm > limit), False]
    assert torch.equal(grad[1], 10 * row)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e30])
def test_an_infinite_limit_changes_no_bit(scale):
    # 1e30: the norm itself overflows
    grad = torch.randn(2, 100, generator=torch.Generator().manual_seed(0)) * scale
    before = grad.clone()
    clip(grad, torch.tensor([INF, INF]))
    assert torch.equal(grad, before)


def test_a_gradient_that_is_not_finite_leaves_its_neighbour_alone():
    grad = torch.ones(2, 4)
    grad[0, 1] = torch.nan
    _, clipped = clip(grad, torch.tensor([1.0, 1.0]))
    assert grad[0].isnan().all()
    torch.testing.assert_close(grad[1], torch.full((4,), 0.5), rtol=1e-5, atol=0)
    assert clipped.tolist() == [False, True]


def test_rules_say_their_limit():
    assert Norm(max_norm=0.5).limit() == 0.5
    assert NoClip().limit() == INF

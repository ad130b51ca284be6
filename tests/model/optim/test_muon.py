import math

import pytest
import torch

from model.optim.muon import orthogonalize
from model.optim.param_groups import merge_groups, param_groups
from tests.support.optimizer_steps import on_device, packed, step
from tests.support.tiny import tiny

MUON = {"optimizer.name": "muon", "clip.name": "none", "model.n_layer": 2, "model.tied": False}


def newton_schulz(g: torch.Tensor) -> torch.Tensor:
    """Orthogonalise one matrix as the post of Jordan et al. writes it, in double precision."""
    x = g.double()
    x = x.T if len(g) > len(g.T) else x
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if len(g) > len(g.T) else x


def muon(w, g, m, lr=0.02, momentum=0.95, nesterov=True, decay=0.0):
    """Return weights and momentum after one step on one matrix, in double precision."""
    m = momentum * m + (1 - momentum) * g
    look = (1 - momentum) * g + momentum * m if nesterov else m
    scale = math.sqrt(max(1, w.shape[0] / w.shape[1]))
    return w * (1 - lr * decay) - lr * scale * newton_schulz(look), m


@pytest.mark.parametrize("shape", [(4, 16, 16), (3, 16, 64), (2, 8, 100)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_of_an_orthogonalised_matrix_are_near_one_whatever_its_scale(shape, scale):
    u, s, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    x = u * torch.linspace(1, 0.05, s.shape[-1]) @ v * scale  # a square matrix of chance has some that are near 0
    values = torch.linalg.svdvals(orthogonalize(x, 5))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    nearest = u @ v
    assert float((orthogonalize(x, 5) * nearest).sum() / nearest.square().sum()) > 0.85  # keeps singular vectors


def matrices(name, tensor, width):
    """Return the matrices that a parameter stands for: queries, keys, values; else itself."""
    return tensor.split(width) if name.endswith("qkv.weight") else [tensor]


@pytest.mark.parametrize("size", [1, 3])
def test_muon_equals_the_written_out_steps_on_every_matrix_and_adamw_elsewhere(size):
    options = [{}, {"optimizer.momentum": 0.5, "optimizer.weight_decay": 0.3}, {"optimizer.lr": 0.1}]
    configs = [tiny(MUON | {"optimizer.adam_lr": 3e-3} | values) for values in options[:size]]
    pack = packed(configs)
    wanted = [
        {name: t.double() for name, t in pack.tensors(k).items() if name.startswith("weights.")} for k in range(size)
    ]
    momenta = [{} for _ in range(size)]
    adams = []
    for k in range(size):
        rest = [n for n, p in pack.spans.items() if len(pack.shapes[n]) < 2 or n.startswith(("wte", "wpe", "head"))]
        parameters = {n: wanted[k][f"weights.{n}"].clone().requires_grad_() for n in rest}
        decay = configs[k].optimizer.weight_decay
        groups = [{"params": [p], "weight_decay": decay if p.ndim > 1 else 0.0} for p in parameters.values()]
        adams.append((parameters, torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))))
    generator = torch.Generator().manual_seed(1)
    for number in range(1, 8):
        pack.grads.normal_(generator=generator)
        for k, config in enumerate(configs):
            rule, (parameters, adam) = config.optimizer, adams[k]
            for name, (a, b) in pack.spans.items():
                g = pack.grads[k, a:b].view(pack.shapes[name]).double()
                if name in parameters:
                    parameters[name].grad = g.clone()
                    continue
                w = wanted[k][f"weights.{name}"]
                found = []
                for i, (wi, gi) in enumerate(zip(matrices(name, w, 16), matrices(name, g, 16), strict=True)):
                    m = momenta[k].get((name, i), torch.zeros_like(gi))
                    wi, momenta[k][name, i] = muon(wi, gi, m, rule.lr, rule.momentum, True, rule.weight_decay)
                    found.append(wi)
                wanted[k][f"weights.{name}"] = torch.cat(found)
            adam.step()
        steps = on_device(*(step(c, pack, number) for c in configs))
        pack.update(range(size), steps, pack.grad_norms(range(size)))
    for k in range(size):
        for name in pack.shapes:
            target = adams[k][0].get(name, wanted[k][f"weights.{name}"])
            found = pack.tensors(k)[f"weights.{name}"].double()
            torch.testing.assert_close(found, target.detach(), rtol=1e-3, atol=2e-4)


def test_muon_keeps_no_second_moment_of_matrices():
    pack = packed([tiny(MUON)])
    matrix = sum(group.stop - group.start for group in pack.groups if group.name == "matrix")
    P = pack.weights.shape[1]
    assert {key: block.shape for key, block in pack.state.items()} == {
        "momentum_buffer": (1, matrix),
        "exp_avg": (1, P - matrix),
        "exp_avg_sq": (1, P - matrix),
    }


def test_every_parameter_is_in_exactly_one_group_and_experts_are_matrices_of_their_own():
    shapes = {
        "wte.weight": (50, 8),
        "blocks.0.attn.qkv.weight": (24, 8),
        "blocks.0.mlp.fc": (4, 32, 8),
        "blocks.0.mlp.router.weight": (4, 8),
        "blocks.0.norm1.weight": (8,),
        "skip_weights": (1,),
        "head.weight": (50, 8),
    }
    groups = param_groups(shapes, 1, by_depth=False)
    assert {param.name: group.name for group in groups for param in group.slices} == {
        "wte.weight": "embedding",
        "blocks.0.attn.qkv.weight": "matrix",
        "blocks.0.mlp.fc": "matrix",
        "blocks.0.mlp.router.weight": "scalar",
        "blocks.0.norm1.weight": "scalar",
        "skip_weights": "scalar",
        "head.weight": "head",
    }
    params = merge_groups(groups).slices
    sizes = {param.name: (param.n, param.rows, param.cols) for param in params}
    assert sizes["blocks.0.attn.qkv.weight"] == (3, 8, 8)
    assert sizes["blocks.0.mlp.fc"] == (4, 32, 8)
    spans = sorted((param.start, param.stop) for param in params)
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])]


def test_the_step_of_muon_does_not_depend_on_the_size_of_gradients():
    config = tiny(MUON)
    found = []
    for scale in (1e-3, 1e3):
        pack = packed([config])
        before = pack.weights.clone()
        pack.grads.copy_(torch.randn(pack.grads.shape, generator=torch.Generator().manual_seed(2)) * scale)
        pack.update([0], on_device(step(config, pack, 1)), pack.grad_norms([0]))
        a, b = pack.spans["blocks.0.mlp.fc.weight"]
        found.append((pack.weights - before)[0, a:b])
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-5)

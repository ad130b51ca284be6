import pytest
import torch

from model.config import TrainConfig
from model.pack import Pack
from tests.tiny import tiny

INF = float("inf")
BIASED = {"model.bias": True, "model.n_layer": 2}
CASES = {
    "adamw": [
        {"optimizer.name": "adamw", "optimizer.lr": 1e-2, "optimizer.beta2": 0.999, "optimizer.weight_decay": 0.5},
        {"optimizer.name": "adamw", "optimizer.lr": 3e-3, "optimizer.beta1": 0.5, "optimizer.weight_decay": 0.0},
        {"optimizer.name": "adamw", "optimizer.lr": 3e-2, "optimizer.beta1": 0.0, "optimizer.eps": 1e-3},
    ],
    "adam": [
        {"optimizer.name": "adam", "optimizer.lr": 1e-2, "optimizer.weight_decay": 0.5},
        {"optimizer.name": "adam", "optimizer.lr": 3e-3, "optimizer.beta2": 0.9},
        {"optimizer.name": "adam", "optimizer.lr": 3e-2, "optimizer.eps": 1e-3, "optimizer.beta1": 0.95},
    ],
    "sgd": [
        {"optimizer.name": "sgd", "optimizer.weight_decay": 0.5},
        {"optimizer.name": "sgd", "optimizer.lr": 0.01, "optimizer.momentum": 0.0},
        {"optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.momentum": 0.5},
    ],
    "nesterov": [
        {"optimizer.name": "sgd", "optimizer.nesterov": True, "optimizer.weight_decay": 0.5},
        {"optimizer.name": "sgd", "optimizer.nesterov": True, "optimizer.lr": 0.01, "optimizer.momentum": 0.1},
        {"optimizer.name": "sgd", "optimizer.nesterov": True, "optimizer.lr": 0.05, "optimizer.momentum": 0.99},
    ],
    "rmsprop": [
        {"optimizer.name": "rmsprop", "optimizer.lr": 1e-2, "optimizer.weight_decay": 0.5},
        {"optimizer.name": "rmsprop", "optimizer.lr": 3e-3, "optimizer.momentum": 0.9},
        {"optimizer.name": "rmsprop", "optimizer.lr": 1e-3, "optimizer.alpha": 0.5, "optimizer.eps": 1e-3},
    ],
}


def reference(config: TrainConfig, parameters: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    """Return torch's optimizer of the same hyperparameters, weight decay as `decay` says."""
    rule = config.optimizer
    bare = [p for p in parameters.values() if p.ndim < 2 and rule.decay == "matrices"]
    decayed = [p for p in parameters.values() if not any(p is b for b in bare)]
    groups = [{"params": decayed, "weight_decay": rule.weight_decay}, {"params": bare, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if rule.name in ("adamw", "adam"):
        kind = torch.optim.AdamW if rule.name == "adamw" else torch.optim.Adam
        return kind(groups, rule.lr, (rule.beta1, rule.beta2), rule.eps)
    if rule.name == "sgd":
        return torch.optim.SGD(groups, rule.lr, rule.momentum, nesterov=rule.nesterov)
    return torch.optim.RMSprop(groups, rule.lr, rule.alpha, rule.eps, momentum=rule.momentum)


def packed(configs: list[TrainConfig]) -> Pack:
    pack = Pack(configs[0], 257, len(configs), torch.device("cpu"))
    for place, config in enumerate(configs):
        pack.fill(place, config)
    pack.weights.normal_(generator=torch.Generator().manual_seed(0))
    return pack


def assert_follows_torch(configs: list[TrainConfig], updates: int = 20) -> None:
    pack = packed(configs)
    names = list(pack.shapes)
    runs = []
    for place, config in enumerate(configs):
        parameters = {n: pack.tensors(place)[f"weights.{n}"].clone().requires_grad_() for n in names}
        runs.append((parameters, reference(config, parameters)))
    generator = torch.Generator().manual_seed(1)
    for step in range(1, updates + 1):
        pack.grads.normal_(generator=generator)
        for place, (parameters, optimizer) in enumerate(runs):
            for name, (a, b) in pack.spans.items():
                parameters[name].grad = pack.grads[place, a:b].view(pack.shapes[name]).clone()
            optimizer.step()
        coefficients = [config.optimizer.coefficients(config.optimizer.lr, step) for config in configs]
        pack.update(range(len(configs)), coefficients, [INF] * len(configs))
    for place, (parameters, _) in enumerate(runs):
        for name in names:
            torch.testing.assert_close(
                pack.tensors(place)[f"weights.{name}"], parameters[name].detach(), rtol=1e-5, atol=2e-6
            )


@pytest.mark.parametrize("values", [v for cases in CASES.values() for v in cases], ids=str)
def test_an_optimizer_equals_that_of_torch(values):
    assert_follows_torch([tiny(BIASED | values)])


@pytest.mark.parametrize("rule", CASES)
def test_runs_of_one_pack_keep_their_own_hyperparameters(rule):
    assert_follows_torch([tiny(BIASED | values) for values in CASES[rule]])


@pytest.mark.parametrize("rule", CASES)
@pytest.mark.parametrize("size", [1, 3])
def test_decay_all_reaches_gains_and_biases_too(rule, size):
    assert_follows_torch([tiny(BIASED | {"optimizer.decay": "all"} | values) for values in CASES[rule][:size]])


@pytest.mark.parametrize("rule", CASES)
def test_without_gradients_weight_decay_moves_matrices_and_leaves_gains_alone(rule):
    config = tiny(BIASED | CASES[rule][0])
    pack = packed([config])
    before = pack.weights.clone()
    pack.update([0], [config.optimizer.coefficients(0.1, 1)], [INF])
    moved = {name: not torch.equal(pack.weights[0, a:b], before[0, a:b]) for name, (a, b) in pack.spans.items()}
    assert moved == {name: len(shape) >= 2 for name, shape in pack.shapes.items()}


def test_an_update_of_some_places_leaves_the_others_as_they_are():
    configs = [tiny({"run.seed": seed}) for seed in range(3)]
    pack = packed(configs)
    pack.grads.normal_()
    before = {"weights": pack.weights.clone(), "grads": pack.grads.clone(), **pack.state}
    before = {name: block.clone() for name, block in before.items()}
    pack.update([0, 2], [c.optimizer.coefficients(0.1, 1) for c in (configs[0], configs[2])], [1.0, INF])
    for name, block in {"weights": pack.weights, "grads": pack.grads, **pack.state}.items():
        assert torch.equal(block[1], before[name][1]), name
        assert not torch.equal(block[0], before[name][0]), name
    assert not pack.grads[[0, 2]].any()

import pytest
from pydantic import TypeAdapter, ValidationError

from model.nn.architecture import GPT, Model, MoE
from model.nn.shapes import n_parameters

MODEL = TypeAdapter(Model)
ROPE = {"norm": "rmsnorm", "position": "rope"}
COUNTS = {
    "mainrun": (16_000, 27_172_864, GPT(n_layer=6, n_head=8, n_embd=512, context=128, bias=True)),
    "blueberry": (49_152, 79_059_840, MoE(n_layer=6, n_head=8, n_embd=384, context=512, **ROPE)),
    "microgpt": (
        27,
        4_192,
        GPT(
            n_layer=1,
            n_head=4,
            n_embd=16,
            context=16,
            norm="rmsnorm",
            norm_gain="none",
            mlp="relu",
            tied=False,
            embedding_norm=True,
            final_norm=False,
        ),
    ),
    "unet": (
        32_000,
        266_896_392,
        GPT(n_layer=16, n_head=8, n_embd=1024, context=512, mlp="relu2", tied=False, skips="convex", **ROPE),
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_reference_models_have_their_number_of_parameters(name):
    vocab_size, wanted, shape = COUNTS[name]
    assert n_parameters(shape, vocab_size) == wanted


WRONG = [
    ({"n_head": 5}, "n_embd must be a multiple of n_head, got 96 and 5"),
    ({"n_embd": 12, "position": "rope"}, "n_embd / n_head must be even with rope, got 3"),
    ({"position": "rope", "position_std": 0.0}, "position_std has no effect with rope, .* got 0.0"),
    ({"skips": "convex", "n_layer": 3}, "n_layer must be even with skips, got 3"),
    (
        {"position": "rope", "scale_embedding": True, "embedding_norm": True},
        "scale_embedding must be false .* got true",
    ),
    ({"name": "moe", "bias": True}, "bias must be false in a mixture of experts, got true"),
    ({"name": "moe", "n_expert": 4, "top_k": 5}, "top_k must be at most n_expert = 4, got 5"),
    ({"name": "moe", "n_expert": 2}, "balance must be 0 if every expert computes every token .* got 0.01"),
    ({"name": "moe", "n_expert": 1}, "greater than or equal to 2"),
    ({"name": "gpt", "n_expert": 4}, "Extra inputs are not permitted"),
    ({"norm_gain": "matrix"}, "'vector', 'scalar' or 'none'"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else str(list(v)))
def test_what_means_nothing_is_refused_by_name_rule_and_value(values, message):
    with pytest.raises(ValidationError, match=message):
        MODEL.validate_python({"name": "gpt"} | values)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ValidationError, match=r"multiple of n_head.*position_std.*n_layer must be even"):
        GPT(n_head=5, position="rope", position_std=0.1, skips="additive", n_layer=1)
    with pytest.raises(ValidationError, match=r"bias must be false.*top_k must be"):
        MoE(bias=True, top_k=9)


@pytest.mark.parametrize(
    "shape",
    [GPT(), MoE(), MoE(n_expert=2, balance=0.0), GPT(position="rope"), GPT(skips="convex", position_std=0.0)],
    ids=repr,
)
def test_a_complete_dump_loads_again(shape):
    assert MODEL.validate_python(shape.model_dump()) == shape
    assert MODEL.validate_json(MODEL.dump_json(shape)) == shape


def test_only_a_mixture_has_numbers_that_act_inside():
    assert GPT().numbers() == {}
    assert MoE(router_noise=0.5).numbers() == {"router_noise": 0.5, "balance": 0.01}

"""Names and shapes of the parameters of one run of a network.

Shapes: T context, C residual width, V vocabulary, E experts.
"""

import torch

from model.nn.architecture import MoE, Transformer

Shapes = dict[str, torch.Size]


def parameter_shapes(config: Transformer, vocab_size: int) -> Shapes:
    """Return the shape of each parameter by name, in the order of a checkpoint of version 0.1."""
    C, T, L = config.n_embd, config.context, config.n_layer
    shapes: dict[str, tuple[int, ...]] = {}
    if config.skips != "none":
        shapes["skip_weights"] = (L // 2,)
    shapes["wte.weight"] = (vocab_size, C)
    if config.position == "learned":
        shapes["wpe.weight"] = (T, C)
    if config.embedding_projection:
        shapes["embedding_projection.weight"] = (C, C)
    if config.embedding_norm:
        shapes |= _norm("embedding_norm", config)
    for layer in range(L):
        shapes |= _block(f"blocks.{layer}", config)
    if config.final_norm:
        shapes |= _norm("norm", config)
    if config.embedding_projection:
        shapes["head_projection.weight"] = (C, C)
    if not config.tied:
        shapes["head.weight"] = (vocab_size, C)
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def n_parameters(config: Transformer, vocab_size: int) -> int:
    """Return the number of parameters of one run."""
    return sum(shape.numel() for shape in parameter_shapes(config, vocab_size).values())


def _block(name: str, config: Transformer) -> dict[str, tuple[int, ...]]:
    C = config.n_embd
    shapes = _norm(f"{name}.norm1", config)
    shapes |= _linear(f"{name}.attn.qkv", C, 3 * C, config.bias)
    shapes |= _linear(f"{name}.attn.proj", C, C, config.bias)
    shapes |= _norm(f"{name}.norm2", config)
    if isinstance(config, MoE):
        return shapes | _experts(f"{name}.mlp", config)
    return shapes | _mlp(f"{name}.mlp", config)


def _mlp(name: str, config: Transformer) -> dict[str, tuple[int, ...]]:
    C, hidden = config.n_embd, config.hidden()
    shapes = _linear(f"{name}.fc", C, hidden, config.bias)
    if config.mlp == "swiglu":
        shapes |= _linear(f"{name}.gate", C, hidden, config.bias)
    return shapes | _linear(f"{name}.proj", hidden, C, config.bias)


def _experts(name: str, config: MoE) -> dict[str, tuple[int, ...]]:
    C, hidden, E = config.n_embd, config.hidden(), config.n_expert
    shapes: dict[str, tuple[int, ...]] = {f"{name}.fc": (E, hidden, C)}
    if config.mlp == "swiglu":
        shapes[f"{name}.gate"] = (E, hidden, C)
    return shapes | {f"{name}.proj": (E, C, hidden), f"{name}.router.weight": (E, C)}


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, config: Transformer) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if config.norm_gain != "none":
        shapes[f"{name}.weight"] = (1 if config.norm_gain == "scalar" else config.n_embd,)
    if config.bias and config.norm == "layernorm":
        shapes[f"{name}.bias"] = (config.n_embd,)
    return shapes

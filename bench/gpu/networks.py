"""Networks that `make gpu` trains: the full-size bases and two small sizes, all on python-docs."""

import dataclasses
import functools

from bench.gpu.records import Settings
from hpo.config.files import load_base
from model.config import TrainConfig
from model.data.corpus import PythonDocs
from model.data.prepare import prepare
from model.data.prepared import PreparedData
from model.nn.architecture import MoE, Transformer
from model.nn.shapes import parameter_shapes
from model.section import updated

BASES = ("mainrun", "blueberry", "unet")
# Python's documentation has too few different pairs for a larger BPE. Larger vocabularies of bases keep their size in
# the network, with ids that never occur.
BPE = 16_000
LONG = {"run.tokens": 10**12, "run.rungs": 1}  # more tokens than any measurement trains
SIZES = {
    "1 M": {"model.n_layer": 5, "model.n_embd": 128, "model.n_head": 4, "model.context": 128, "run.batch_size": 8},
    "10 M": {"model.n_layer": 8, "model.n_embd": 320, "model.n_head": 5, "model.context": 128, "run.batch_size": 8},
}
SIZES["10 M mixture"] = SIZES["10 M"] | {"model.name": "moe"}
TINY = {"model.n_layer": 2, "model.n_embd": 32, "model.n_head": 4, "model.context": 16, "run.batch_size": 2}


def base_config(name: str, settings: Settings) -> TrainConfig:
    """Return a base on python-docs in its own size and batch; with --tiny, a small network of the same kind."""
    base = load_base(name, "base", TrainConfig)
    data = {"data.name": "python-docs", "data.val_fraction": PythonDocs().val_fraction}  # one text for all bases
    config = updated(base, LONG | data | {"tokenizer.vocab_size": BPE, **_hardware(settings)})
    return updated(config, TINY | {"tokenizer.vocab_size": 512}) if settings.tiny else config


def small_config(size: str, settings: Settings) -> TrainConfig:
    """Return a run of one of SIZES, with updates of 1,024 tokens. A mixture of 10 M has 56 million parameters."""
    shape = SIZES[size] | (TINY if settings.tiny else {})
    return updated(TrainConfig(), LONG | {"tokenizer.vocab_size": 512} | shape | _hardware(settings))


def _hardware(settings: Settings) -> dict[str, str]:
    return {"run.device": settings.device, "run.precision": "bf16", "run.compile": "off"}


def with_compile(config: TrainConfig, compiled: bool) -> TrainConfig:
    """Return the configuration with or without compiled steps. On a CPU, a single run has none."""
    return updated(config, {"run.compile": "on" if compiled and config.run.device == "cuda" else "off"})


def data_of(config: TrainConfig, base: str | None = None, tiny: bool = False) -> PreparedData:
    """Return the prepared text, with the vocabulary size of a base."""
    prepared = prepare(config.data, config.tokenizer)
    if base is None or tiny:
        return prepared
    size = getattr(load_base(base, "base", TrainConfig).tokenizer, "vocab_size", prepared.vocab_size)
    return dataclasses.replace(prepared, vocab_size=max(size, prepared.vocab_size))


@functools.cache
def n_weights(config: Transformer, vocab_size: int) -> tuple[int, float]:
    """Return the number of parameters, and of those that multiply each token: no embeddings, k of E experts."""
    total, active = 0, 0.0
    for name, shape in parameter_shapes(config, vocab_size).items():
        size = functools.reduce(lambda a, b: a * b, shape, 1)
        total += size
        if name == "wte.weight":
            active += size if config.tied else 0  # a tied embedding is the head
        elif len(shape) == 3 and isinstance(config, MoE):
            active += size * config.top_k / config.n_expert
        elif len(shape) == 2 and name != "wpe.weight":
            active += size
    return total, active


def flops_per_token(config: Transformer, vocab_size: int) -> float:
    """Return the floating point operations of forward and backward pass for one token.

    6 for each weight that multiplies the token and 12 L C T for attention, without credit for the causal mask.
    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    return 6 * n_weights(config, vocab_size)[1] + 12 * config.n_layer * config.n_embd * config.context

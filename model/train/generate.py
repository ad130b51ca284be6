"""Generate text with a trained run: load its checkpoint and continue a prompt token by token.

Shapes: B sequences, T tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import TrainConfig
from model.data.prepare import prepare
from model.data.tokenizer import END, Vocabulary
from model.errors import ConfigError
from model.nn.gpt import Network
from model.seeds import derive
from model.train import checkpoint


class Sampling(NamedTuple):
    """How the next token is sampled."""

    temperature: float = 1.0
    """Logits are divided by the temperature; 0 selects the most likely token."""
    top_k: int | None = None
    """Number of most likely tokens to sample from; None: all tokens."""
    seed: int = 0
    """Seed of the random numbers."""

    def check(self) -> None:
        """Check the ranges of all fields.

        Raises:
            ConfigError: a field is out of range.
        """
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature: must be a number of at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k: must be at least 1, got {self.top_k}")


class TrainedRun:
    """A network with the weights of one run."""

    def __init__(self, network: Network, weights: Mapping[str, Tensor]) -> None:
        """Add the run axis to the weights, which are given by name and without it."""
        self.network, self.context = network, network.config.context
        self.weights = {name: weight[None] for name, weight in weights.items()}

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, (B, T, V). tokens: (B, T)."""
        return self.network(self.weights, tokens[None]).view(*tokens.shape, -1)


def generate(
    folder: Path,
    prompt: str = "",
    tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> str:
    """Return the text with which a trained run continues a prompt.

    folder: holds the checkpoint of the run. tokens: largest number of tokens to generate. A run that was trained with
    data.layout documents stops at the end of its document.

    Raises:
        ConfigError: an argument is out of range, or this machine cannot prepare the data.
        checkpoint.CheckpointError: there is no checkpoint, or the data has changed since.
    """
    sampling = Sampling(temperature, top_k, seed)
    sampling.check()
    if tokens < 1:
        raise ConfigError(f"tokens: must be at least 1, got {tokens}")
    config, network, vocabulary = load_run(folder)
    prompt_ids = [END, *vocabulary.encode_batch([prompt])[0].tolist()]
    generated: list[int] = []
    for token in generate_tokens(network, prompt_ids, sampling):
        if token == END and config.data.layout == "documents":
            break
        generated.append(token)
        if len(generated) == tokens:
            break
    # Decode all tokens together, because one character may consist of several tokens.
    return vocabulary.decode(generated)


def load_run(folder: Path) -> tuple[TrainConfig, TrainedRun, Vocabulary]:
    """Return the configuration of a saved run, its network and its vocabulary.

    Raises:
        checkpoint.CheckpointError: there is no checkpoint, or the data has changed since.
    """
    tensors, state = checkpoint.read(folder)
    config = checkpoint.stored_config(folder, state)
    prepared = prepare(config.data, config.tokenizer)
    if prepared.hash != state["data_hash"]:
        raise checkpoint.CheckpointError(
            f"{folder}: the data has changed since the run, so that its token ids have another meaning"
        )
    network, weights = Network(config.model, prepared.vocab_size), {}
    for name, shape in network.shapes.items():
        saved = tensors.get(f"weights.{name}")
        if saved is None or saved.shape != shape:
            raise checkpoint.CheckpointError(f"{folder}: damaged: lacks weights of {name} in its shape")
        weights[name] = saved
    return config, TrainedRun(network, weights), prepared.vocabulary()


@torch.no_grad()
def generate_tokens(network: TrainedRun, prompt_ids: list[int], sampling: Sampling) -> Iterator[int]:
    """Yield token ids without end. prompt_ids: at least one id."""
    generator = torch.Generator().manual_seed(derive(sampling.seed, "sample") % 2**63)
    context, ids = network.context, prompt_ids
    while True:
        ids = ids[-context:]
        logits = network(torch.tensor([ids]))[0, -1]  # (V,)
        token = sample_token(logits, sampling, generator)
        ids = [*ids, token]
        yield token


def sample_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Sample the id of one token. logits: (V,)."""
    if sampling.temperature == 0 or sampling.top_k == 1:
        return int(logits.argmax())
    if sampling.top_k is not None:
        # Selected by rank, not by value: with equal logits more than k tokens could pass a threshold.
        unlikely = logits.argsort(descending=True, stable=True)[sampling.top_k :]
        logits = logits.index_fill(0, unlikely, -math.inf)
    probabilities = ((logits - logits.max()) / sampling.temperature).softmax(0)
    return int(torch.multinomial(probabilities, 1, generator=generator))

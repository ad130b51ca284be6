"""Text from a trained run: load its checkpoint and continue a prompt token by token."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import TrainConfig
from model.data.prepare import prepare
from model.data.tokenizer import END, Vocabulary
from model.errors import ConfigError
from model.nn.gpt import Network, build_network
from model.seeds import derive
from model.train import checkpoint


class Sampling(NamedTuple):
    """How the next token is drawn."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token."""
    top_k: int | None = None
    """Draw among this many most likely tokens; none: among all."""
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError for numbers that mean nothing."""
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature: must be a number of at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k: must be at least 1, got {self.top_k}")


def generate(
    folder: Path,
    prompt: str = "",
    tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> str:
    """Return what the run whose checkpoint is in `folder` writes after a prompt.

    tokens: how many at most; a run trained on documents stops at the end of its document.

    Raises:
        ConfigError: a number that means nothing, or data that this machine cannot prepare.
        checkpoint.CheckpointError: there is no checkpoint, or its data has changed.
    """
    sampling = Sampling(temperature, top_k, seed)
    sampling.check()
    if tokens < 1:
        raise ConfigError(f"tokens: must be at least 1, got {tokens}")
    config, network, vocabulary = load_run(folder)
    begin = [END, *vocabulary.encode_batch([prompt])[0].tolist()]
    written: list[int] = []
    for token in generate_tokens(network, begin, sampling):
        if token == END and config.data.layout == "documents":
            break
        written.append(token)
        if len(written) == tokens:
            break
    # Decoded as a whole: one character may take several tokens.
    return vocabulary.decode(written)


def load_run(folder: Path) -> tuple[TrainConfig, Network, Vocabulary]:
    """Return the config of a saved run, its network and its vocabulary.

    Raises:
        checkpoint.CheckpointError: there is no checkpoint, or its data has changed.
    """
    tensors, state = checkpoint.read(folder)
    config = TrainConfig.model_validate(state["config"])
    prepared = prepare(config.data, config.tokenizer)
    if prepared.hash != state["data_hash"]:
        raise checkpoint.CheckpointError(f"{folder}: its data has changed since, so its tokens mean something else")
    network = build_network(config.model, prepared.vocab_size, config.run.seed).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[f"weights.{name}"])
    return config, network, prepared.tokenizer()


@torch.no_grad()
def generate_tokens(network: Network, begin: list[int], sampling: Sampling) -> Iterator[int]:
    """Yield token after token, without end. begin: at least one id."""
    generator = torch.Generator().manual_seed(derive(sampling.seed, "sample") % 2**63)
    window, ids = network.config.context, begin
    while True:
        ids = ids[-window:]
        logits = network(torch.tensor([ids]))[0, -1]  # (V,)
        token = sample_token(logits, sampling, generator)
        ids = [*ids, token]
        yield token


def sample_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Return one token. logits: (V,)."""
    if sampling.temperature == 0 or sampling.top_k == 1:
        return int(logits.argmax())
    if sampling.top_k is not None:
        # By rank and not by value, so that ties do not let more than k through.
        unlikely = logits.argsort(descending=True, stable=True)[sampling.top_k :]
        logits = logits.index_fill(0, unlikely, -math.inf)
    probabilities = ((logits - logits.max()) / sampling.temperature).softmax(0)
    return int(torch.multinomial(probabilities, 1, generator=generator))

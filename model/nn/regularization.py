"""Configuration of dropout (Srivastava et al. 2014), input noise and weight averaging."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import model_validator

from model.section import Decay, NonNegative, Positive, Section

SITES = ("embedding", "attention", "residual", "mlp")  # places with a probability of their own; None: `dropout`


class Regularization(Section):
    """Dropout, for the whole network or per site, and other methods against overfitting."""

    forms: ClassVar[Mapping[str, str]] = {"ema": "ema_half_life"}

    dropout: Decay = 0.0
    """Probability that an activation is dropped, at every site without a probability of its own."""
    embedding_dropout: Decay | None = None
    """Dropout probability after the token and position embeddings. None: same as dropout."""
    attention_dropout: Decay | None = None
    """Dropout probability of the attention weights. None: dropout. Above 0, fused attention is not used."""
    residual_dropout: Decay | None = None
    """Dropout probability of the outputs of attention and MLP, before they are added to the residual stream. None:
    dropout."""
    mlp_dropout: Decay | None = None
    """Dropout probability of the hidden layer of the MLP. None: same as dropout."""
    ema: Decay | None = None
    """Decay per update of an exponential moving average of the weights, which is evaluated at every rung besides the
    weights. None: no average. In update t, the decay is at most (1 + t) / (10 + t), so that the average forgets the
    initial weights."""
    ema_half_life: Positive | None = None
    """Half-life in tokens of the average of the weights, in place of ema, which is 0.5^(tokens of an update /
    half-life). None: no average, or that of ema."""
    head_dropout: Decay = 0.0
    """Dropout probability before the head. `dropout` does not apply there."""
    mask_tokens: Decay = 0.0
    """Probability that an input token is replaced by a random token. Targets and the end token are never replaced."""
    embedding_noise: NonNegative = 0.0
    """Standard deviation of the Gaussian noise added to the embeddings in training, as a fraction of the root mean
    square of each token's embedding."""

    @model_validator(mode="after")
    def _dropout_has_an_effect(self) -> Self:
        if self.dropout and all(getattr(self, f"{site}_dropout") is not None for site in SITES):
            raise ValueError(
                f"dropout has no effect if every site has a probability of its own, leave it out, got {self.dropout}"
            )
        return self

    def has_average(self) -> bool:
        """Return whether a run averages its weights."""
        return self.ema is not None or self.ema_half_life is not None

    def numbers(self) -> dict[str, float]:
        """Return the numbers inside the network, by the name of their buffer."""
        names = [f"{site}_dropout" for site in SITES]
        sites = {name: self.dropout if getattr(self, name) is None else getattr(self, name) for name in names}
        own = {"head_dropout": self.head_dropout, "mask_tokens": self.mask_tokens}
        return sites | own | {"embedding_noise": self.embedding_noise}

"""Dropout (Srivastava et al. 2014), noise on the input, and an average of the weights."""

from typing import Self

from pydantic import model_validator

from model.section import Decay, NonNegative, Section

SITES = ("embedding", "attention", "residual", "mlp")  # each with a field of its own that is `dropout` where none


class Regularization(Section):
    """Dropout, everywhere or by site, and other ways against learning the text by heart."""

    dropout: Decay = 0.0
    """Probability that an activation is dropped, at every site that has no probability of its own."""
    embedding_dropout: Decay | None = None
    """After the token and position embeddings; none: `dropout`."""
    attention_dropout: Decay | None = None
    """On the attention weights; none: `dropout`. Above 0, fused attention cannot be used."""
    residual_dropout: Decay | None = None
    """On what attention and mlp add to the residual stream; none: `dropout`."""
    mlp_dropout: Decay | None = None
    """On the hidden layer of the mlp; none: `dropout`."""
    ema: Decay | None = None
    """Decay of an average of the weights, scored beside them at every rung; none: no average. In the first updates t
    it is at most (1 + t) / (10 + t), so that the average forgets the initial weights."""
    head_dropout: Decay = 0.0
    """Before the head; `dropout` does not reach here."""
    mask_tokens: Decay = 0.0
    """Probability that an input token, never a target and never the end token, is replaced by another one."""
    embedding_noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise on the embeddings in training, as a fraction of the root mean square of
    each token's embedding."""

    @model_validator(mode="after")
    def _reaches_some_site(self) -> Self:
        if self.dropout and all(getattr(self, f"{site}_dropout") is not None for site in SITES):
            raise ValueError(f"dropout reaches no site, each has a probability of its own; got {self.dropout}")
        return self

    def numbers(self) -> dict[str, float]:
        """Return the numbers in force inside the network, by the name of its buffer."""
        names = [f"{site}_dropout" for site in SITES]
        found = {name: self.dropout if getattr(self, name) is None else getattr(self, name) for name in names}
        own = {"head_dropout": self.head_dropout, "mask_tokens": self.mask_tokens}
        return found | own | {"embedding_noise": self.embedding_noise}

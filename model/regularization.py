"""Dropout: how much of what is dropped, and where (Srivastava et al. 2014)."""

from typing import Literal, get_args

from model.section import Decay, Section

Site = Literal["embedding", "attention", "residual", "mlp"]
SITES: tuple[Site, ...] = get_args(Site)


class Regularization(Section):
    """Dropout, everywhere or by site."""

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

    def at(self, site: Site) -> float:
        """Return the probability in force at a site."""
        own: float | None = getattr(self, f"{site}_dropout")
        return self.dropout if own is None else own

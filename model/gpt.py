"""The shape of the network. The network itself, which needs torch, is in model/network.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from model.section import Count, Positive, Section

if TYPE_CHECKING:
    from model.network import Network


class GPT(Section):
    """A pre-norm decoder-only transformer (Radford et al. 2019)."""

    name: Literal["gpt"] = "gpt"
    n_layer: Count = 2
    """Blocks, each of attention and mlp."""
    n_head: Count = 4
    """Attention heads; must divide n_embd."""
    n_embd: Count = 96
    """Width of the residual stream."""
    context: Annotated[int, Field(ge=2)] = 64
    """Tokens of one sequence."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before each sub-layer and before the head, computed in fp32."""
    norm_eps: Positive = 1e-5
    """Added to the variance, inside the root."""
    position: Literal["learned", "rope"] = "learned"
    """Position information: an embedding, or rotation of queries and keys (Su et al. 2021, arXiv:2104.09864)."""
    mlp: Literal["gelu", "relu", "relu2", "swiglu"] = "gelu"
    """Activation of the mlp; swiglu (Shazeer 2020, arXiv:2002.05202) gets two thirds of the hidden width, so
    that all kinds have equal parameters."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the mlp, in multiples of n_embd."""
    bias: bool = False
    """Biases in linear layers and layer norms."""
    tied: bool = True
    """The head shares its weights with the token embedding."""
    init_std: Positive = 0.02
    """Standard deviation of initial weights; what adds to the residual stream starts 1/sqrt(2 n_layer) smaller."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head, got {self.n_embd} and {self.n_head}")
        if self.position == "rope" and self.n_embd // self.n_head % 2:
            width = self.n_embd // self.n_head
            raise ValueError(f"rope rotates pairs: n_embd / n_head must be even, got {width}")
        return self

    def hidden(self) -> int:
        """Return the hidden width of the mlp: three matrices of swiglu weigh as much as two of the others."""
        width = self.mlp_ratio * self.n_embd
        return max(1, round(width * 2 / 3 if self.mlp == "swiglu" else width))

    def build(self, vocab_size: int, seed: int) -> Network:
        """Return the network with its initial weights."""
        from model.network import Network  # torch takes 2 s to import; checking a file must not

        return Network(self, vocab_size, seed)


Model = GPT  # with a second one: Annotated[GPT | Other, Field(discriminator="name")]

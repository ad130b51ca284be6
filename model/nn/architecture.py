"""The shape of the network. The network itself, which needs torch, is in model/network.py."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model.section import Count, NonNegative, Positive, Section


class Transformer(Section):
    """A pre-norm decoder-only transformer (Radford et al. 2019)."""

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
    norm_gain: Literal["vector", "scalar", "none"] = "vector"
    """What a normalisation multiplies by: a gain for each channel, one for all, as in outlier-safe pre-training
    (Park et al. 2025, arXiv:2506.19697), or nothing."""
    embedding_norm: bool = False
    """Normalise right after the embeddings too."""
    final_norm: bool = True
    """Normalise before the head."""
    position: Literal["learned", "rope"] = "learned"
    """Position information: an embedding, or rotation of queries and keys (Su et al. 2021, arXiv:2104.09864)."""
    mlp: Literal["gelu", "silu", "relu", "relu2", "swiglu"] = "gelu"
    """Activation of the mlp; swiglu (Shazeer 2020, arXiv:2002.05202) gets two thirds of the hidden width, so
    that all kinds have equal parameters."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the mlp, in multiples of n_embd."""
    bias: bool = False
    """Biases in linear layers and layer norms."""
    tied: bool = True
    """The head shares its weights with the token embedding."""
    scale_embedding: bool = False
    """Multiply token embeddings by the square root of n_embd (Vaswani et al. 2017)."""
    embedding_projection: bool = False
    """A learned n_embd x n_embd matrix after the embeddings and another before the head, both orthogonal at first
    (Park et al. 2025, arXiv:2506.19697)."""
    skips: Literal["none", "additive", "convex"] = "none"
    """What the second half of the layers takes in from the first, the last from the first and so on, each with a
    learned weight a that starts at 0: x + a skip, or (1 - sigmoid a) x + sigmoid(a) skip, half of each at first."""
    document_mask: bool = False
    """Attention stays within a document, and learned positions begin anew with each. A document begins at the end
    token before it."""
    init: Literal["scaled", "normal", "kaiming", "glorot"] = "scaled"
    """Initial matrices: Gaussian of init_std, and what adds to the residual stream 1/sqrt(2 n_layer) smaller; the
    same without that; Gaussian of sqrt(2 / inputs); of sqrt(2 / (inputs + outputs)), cut at 3 standard deviations."""
    init_std: Positive = 0.02
    """Standard deviation of the initial embeddings, whatever `init` is, and of the matrices of scaled and normal."""
    position_std: NonNegative | None = None
    """Standard deviation of initial learned positions; none: init_std."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        rope, head = self.position == "rope", self.n_embd // self.n_head
        rules = [
            (self.n_embd % self.n_head, f"n_embd must be a multiple of n_head, got {self.n_embd} and {self.n_head}"),
            (rope and head % 2, f"rope rotates pairs: n_embd / n_head must be even, got {head}"),
            (
                rope and self.position_std is not None,
                f"position_std is for learned positions, of which rope has none, got {self.position_std}",
            ),
            (
                self.skips != "none" and self.n_layer % 2,
                f"skips join two halves: n_layer must be even, got {self.n_layer}",
            ),
            (
                rope and self.scale_embedding and self.embedding_norm,
                "scale_embedding must be false where embedding_norm takes every scale out again, got true",
            ),
        ]
        broken = [message for wrong, message in rules if wrong]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    def hidden(self) -> int:
        """Return the hidden width of the mlp: three matrices of swiglu weigh as much as two of the others."""
        width = self.mlp_ratio * self.n_embd
        return max(1, round(width * 2 / 3 if self.mlp == "swiglu" else width))

    def has_scalars(self) -> bool:
        """Return whether there are gains, biases, skip weights or routers."""
        return self.bias or self.norm_gain != "none" or self.skips != "none"

    def numbers(self) -> dict[str, float]:
        """Return the numbers that act inside the network and may differ between the runs of a pack."""
        return {}


class GPT(Transformer):
    """A transformer with one mlp in each block."""

    name: Literal["gpt"] = "gpt"


class MoE(Transformer):
    """A transformer whose mlps are mixtures of experts without a limit on their tokens (Shazeer et al. 2017,
    arXiv:1701.06538)."""

    name: Literal["moe"] = "moe"
    mlp: Literal["gelu", "silu", "relu", "relu2", "swiglu"] = "silu"
    """Activation of an expert; swiglu (Shazeer 2020, arXiv:2002.05202) gets two thirds of the hidden width, so
    that all kinds have equal parameters."""
    n_expert: Annotated[int, Field(ge=2)] = 8
    """Experts in each layer, each of the hidden width of an mlp."""
    top_k: Count = 2
    """Experts that compute a token, weighted by the softmax of their logits; 1: by its probability among all."""
    router_noise: NonNegative = 0.1
    """Standard deviation of Gaussian noise on the router's logits in training."""
    balance: NonNegative = 0.01
    """Weight of the load-balancing loss, n_expert times the sum over experts of share of tokens times mean
    probability, summed over the layers (Fedus et al. 2021, arXiv:2101.03961)."""

    @model_validator(mode="after")
    def _experts_are_chosen(self) -> Self:
        rules = [
            (self.bias, "bias must be false in a mixture of experts, got true"),
            (self.top_k > self.n_expert, f"top_k must be at most n_expert = {self.n_expert}, got {self.top_k}"),
            (
                self.top_k == self.n_expert and self.balance > 0,
                f"balance must be 0 where every expert computes every token, top_k = n_expert, got {self.balance}",
            ),
        ]
        broken = [message for wrong, message in rules if wrong]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    def has_scalars(self) -> bool:
        return True

    def numbers(self) -> dict[str, float]:
        return {"router_noise": self.router_noise, "balance": self.balance}


Model = Annotated[GPT | MoE, Field(discriminator="name")]

"""Configuration of the network. model/nn/gpt.py holds the network itself, which needs torch.

To add an architecture, write one class with a `name` and add it to the union `Model` at the end of this file.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.section import Count, NonNegative, Positive, Section


class Transformer(Section):
    """A pre-norm decoder-only transformer (Radford et al. 2019)."""

    has_parametrizations: ClassVar[bool] = True
    """Whether there are rules of parametrization for this network."""

    n_layer: Count = 2
    """Number of blocks. Each block has attention and an MLP."""
    n_head: Count = 4
    """Number of attention heads. Must divide n_embd."""
    n_embd: Count = 96
    """Width of the residual stream."""
    context: Annotated[int, Field(ge=2)] = 64
    """Length of one sequence in tokens."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalization before attention, before the MLP and before the head, computed in fp32."""
    norm_eps: Positive = 1e-5
    """Added to the variance in each normalization, inside the square root."""
    norm_gain: Literal["vector", "scalar", "none"] = "vector"
    """Learned gain of each normalization. vector: one gain per channel. scalar: one gain for all channels, as in
    outlier-safe pre-training (Park et al. 2025, arXiv:2506.19697). none: no gain."""
    embedding_norm: bool = False
    """Normalize the sum of the embeddings."""
    final_norm: bool = True
    """Normalize before the head."""
    position: Literal["learned", "rope"] = "learned"
    """Position encoding. learned: a position embedding. rope: rotation of queries and keys (Su et al. 2021,
    arXiv:2104.09864)."""
    mlp: Literal["gelu", "silu", "relu", "relu2", "swiglu"] = "gelu"
    """Activation of the MLP. swiglu (Shazeer 2020, arXiv:2002.05202) has two thirds of the hidden width, so that all
    activations have the same number of parameters."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the MLP, in multiples of n_embd."""
    bias: bool = False
    """Use biases in linear layers and layer norms."""
    tied: bool = True
    """Share the weights of the head with the token embedding."""
    scale_embedding: bool = False
    """Multiply token embeddings by the square root of n_embd (Vaswani et al. 2017)."""
    embedding_projection: bool = False
    """Add a learned n_embd x n_embd matrix after the embeddings and another before the head. Both are initialized as
    orthogonal matrices (Park et al. 2025, arXiv:2506.19697)."""
    skips: Literal["none", "additive", "convex"] = "none"
    """Skip connections from the first to the second half of the blocks: from the first block to the last, from the
    second to the last but one, and so on. Each has a learned weight a, initially 0. additive: x + a skip. convex:
    (1 - sigmoid(a)) x + sigmoid(a) skip."""
    document_mask: bool = False
    """Restrict attention to the document of the token, and restart learned positions at each document. A document
    starts at the end token before it."""
    init: Literal["scaled", "normal", "kaiming", "glorot"] = "scaled"
    """Standard deviation of the Gaussian distribution of the initial matrices. normal: init_std. scaled: init_std,
    divided by sqrt(2 n_layer) for projections into the residual stream. kaiming: sqrt(2 / inputs). glorot:
    sqrt(2 / (inputs + outputs)), and values are truncated at 3 standard deviations."""
    init_std: Positive = 0.02
    """Standard deviation of the initial embeddings, and of the initial matrices if init is scaled or normal."""
    position_std: NonNegative | None = None
    """Standard deviation of the initial position embedding. None: same as init_std."""
    parametrization: Literal["standard", "mup", "completep"] = "standard"
    """How initial weights, multipliers in the network, learning rates, weight decay and eps depend on the size of the
    network. standard: they do not. mup (Yang et al. 2022, arXiv:2203.03466): by width, so that the best learning rate
    at base_width is near the best one at other widths. completep (Dey et al. 2025, arXiv:2505.01618): by width and
    depth. Both divide attention scores by n_embd / n_head, not by its root, and need adamw or muon. See transfer.md."""
    base_width: Count | None = None
    """Width for which the hyperparameters are given, required with mup and completep. Width grows by heads of one size:
    base_width must be a multiple of n_embd / n_head."""
    base_depth: Count | None = None
    """Number of blocks for which the hyperparameters are given, required with completep."""

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        rope, head = self.position == "rope", self.n_embd // self.n_head
        rules = [
            (self.n_embd % self.n_head, f"n_embd must be a multiple of n_head, got {self.n_embd} and {self.n_head}"),
            (rope and head % 2, f"n_embd / n_head must be even with rope, got {head}"),
            (
                rope and self.position_std is not None,
                f"position_std has no effect with rope, leave it out, got {self.position_std}",
            ),
            (
                self.skips != "none" and self.n_layer % 2,
                f"n_layer must be even with skips, got {self.n_layer}",
            ),
            (
                rope and self.scale_embedding and self.embedding_norm,
                "scale_embedding must be false with rope and embedding_norm, which removes the scale, got true",
            ),
            *self._base_rules(),
        ]
        if problems := [message for wrong, message in rules if wrong]:
            raise ValueError("; ".join(problems))
        return self

    def _base_rules(self) -> Iterator[tuple[bool, str]]:
        """Yield the rules of parametrization: whether each is violated, and its message."""
        kind, head = self.parametrization, self.n_embd // self.n_head
        if kind != "standard" and not self.has_parametrizations:
            yield True, f"parametrization must be standard in a mixture of experts, which has no rules, got {kind}"
            return
        for name, kinds in (("base_width", ("mup", "completep")), ("base_depth", ("completep",))):
            base = getattr(self, name)
            yield kind in kinds and base is None, f"{name} is required with parametrization {kind}"
            has_no_effect = f"{name} has no effect with parametrization {kind}, leave it out, got {base}"
            yield kind not in kinds and base is not None, has_no_effect
        heads = f"base_width must be a multiple of n_embd / n_head = {head}, because width grows by heads of one size"
        yield kind != "standard" and (self.base_width or head) % head != 0, f"{heads}, got {self.base_width}"
        skips = f"skips must be none with parametrization completep, which has no rule for them, got {self.skips}"
        yield kind == "completep" and self.skips != "none", skips

    def hidden(self) -> int:
        """Return the hidden width of the MLP. swiglu has three matrices of two thirds of the width instead of two."""
        width = self.mlp_ratio * self.n_embd
        return max(1, round(width * 2 / 3 if self.mlp == "swiglu" else width))

    def has_scalars(self) -> bool:
        """Return whether the network has gains, biases, skip weights or routers."""
        return self.bias or self.norm_gain != "none" or self.skips != "none"

    def numbers(self) -> dict[str, float]:
        """Return the numbers inside the network in which the runs of a pack can differ, by name."""
        return {}


class GPT(Transformer):
    """A transformer with one MLP in each block."""

    name: Literal["gpt"] = "gpt"


class MoE(Transformer):
    """A transformer in which a mixture of experts replaces each MLP. Experts have no capacity limit.

    Source: Shazeer et al. 2017, arXiv:1701.06538.
    """

    has_parametrizations: ClassVar[bool] = False
    name: Literal["moe"] = "moe"
    mlp: Literal["gelu", "silu", "relu", "relu2", "swiglu"] = "silu"
    """Activation of an expert. swiglu (Shazeer 2020, arXiv:2002.05202) has two thirds of the hidden width, so that all
    activations have the same number of parameters."""
    n_expert: Annotated[int, Field(ge=2)] = 8
    """Number of experts per layer. Each expert has the hidden width of an MLP."""
    top_k: Count = 2
    """Number of experts that compute each token. Their outputs are weighted by the softmax of their logits;
    with 1, by the probability of the expert among all experts."""
    router_noise: NonNegative = 0.1
    """Standard deviation of the Gaussian noise added to the router's logits in training."""
    balance: NonNegative = 0.01
    """Weight of the load-balancing loss: n_expert times the sum over experts of fraction of tokens x mean probability,
    summed over the layers (Fedus et al. 2021, arXiv:2101.03961)."""

    @model_validator(mode="after")
    def _check_experts(self) -> Self:
        rules = [
            (self.bias, "bias must be false in a mixture of experts, got true"),
            (self.top_k > self.n_expert, f"top_k must be at most n_expert = {self.n_expert}, got {self.top_k}"),
            (
                self.top_k == self.n_expert and self.balance > 0,
                f"balance must be 0 if every expert computes every token (top_k = n_expert), got {self.balance}",
            ),
        ]
        if problems := [message for wrong, message in rules if wrong]:
            raise ValueError("; ".join(problems))
        return self

    def has_scalars(self) -> bool:
        return True

    def numbers(self) -> dict[str, float]:
        return {"router_noise": self.router_noise, "balance": self.balance}


Model = Annotated[GPT | MoE, Field(discriminator="name")]

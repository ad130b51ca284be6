"""The section `run` of a configuration: length, batch, seed and hardware."""

from typing import Literal, Self

from pydantic import Field, model_validator

from model.section import Count, Positive, Section

# Fields of `run` in which the runs of a pack can differ.
FREE_RUN_FIELDS = {"tokens", "rungs", "align", "grad_accum", "seed", "keep_checkpoints", "spike_every", "spike_scale"}

GraphNumber = Literal[
    "embedding_dropout", "attention_dropout", "residual_dropout", "mlp_dropout", "head_dropout", "mask_tokens",
    "embedding_noise", "balance", "router_noise",
]  # fmt: skip
"""Numbers inside the network that act only in training, by which the runs of a pack can differ."""


class Run(Section):
    """Length, batch, seed and hardware of one run."""

    tokens: Count = 400_000
    """Number of tokens to train on: sequences times context, padding included. Rounded to whole rungs."""
    rungs: Count = 8
    """Number of rungs: equally spaced marks, in tokens, at which the validation split is evaluated. The last rung is
    the end of the run. Evaluation takes about V / (V + 3 tokens) of a run, V = rungs x targets of the split."""
    align: int = Field(default=0, ge=0)
    """Rung marks are rounded to a multiple of this number of tokens. 0: the tokens of one update. A study sets the
    common multiple of the update sizes in its search space, so that all its trials are evaluated at the same marks."""
    batch_size: Count = 8
    """Number of sequences in one forward pass."""
    grad_accum: Count = 1
    """Number of forward passes per update. The update averages over all their tokens."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the run. Initial weights, data order and dropout have separate random streams derived from it."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Precision of the forward and backward pass. Weights are fp32. auto: bf16 on a GPU that supports it, else fp32.
    tf32: fp32, with matrix products in TF32 on a GPU; fp32 never uses TF32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step to graphs without Python, on a GPU to CUDA graphs. It takes up to 30 s the first time
    on a machine and 3 s later. auto: the first worker of a study measures whether compiling makes the study shorter. A
    single run is compiled on a GPU only. A GPU compiles a mixture of experts only in bf16, from compute capability 9.0
    on."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on. auto: cuda if available, else mps, else cpu."""
    keep_checkpoints: Literal["none", "last", "best", "all"] = "last"
    """Which checkpoints to keep on disk. best: the rung with the lowest validation loss."""
    attention: Literal["auto", "explicit"] = "auto"
    """Implementation of attention. auto: fused, unless attention dropout is above 0. explicit: compute the attention
    weights explicitly, for comparison."""
    graph_numbers: tuple[GraphNumber, ...] = ()
    """Numbers of the network that a step computes even where they are 0, so that runs with and without them share
    one compiled graph. A study sets those that its trials may have."""
    diagnostics: bool = False
    """Measure attention entropy, expert load and kurtosis at each rung, on one additional validation batch."""
    test: bool = False
    """Evaluate the test split once, after the last rung. A search must not use it, or the test split is no longer
    independent."""
    spike_every: Count | None = None
    """Multiply the loss of every spike_every-th update by spike_scale. This injected fault tests clipping and recovery.
    None: no fault."""
    spike_scale: Positive | None = None
    """Factor on the loss of the updates that spike_every selects. With 1e38, their gradients overflow."""

    @model_validator(mode="after")
    def _check_spikes(self) -> Self:
        if (self.spike_every is None) != (self.spike_scale is None):
            raise ValueError(
                f"spike_every and spike_scale must be set together, got {self.spike_every} and {self.spike_scale}"
            )
        return self

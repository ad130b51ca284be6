"""How long a run is, how it is cut into updates and rungs, and on what it is computed."""

from typing import Literal, Self

from pydantic import Field, model_validator

from model.section import Count, Positive, Section


class Run(Section):
    """Length, batch, seed and hardware of one run."""

    tokens: Count = 400_000
    """Tokens to train on: sequences times context, padding included. Rounded to whole rungs."""
    rungs: Count = 8
    """Equally spaced token marks at which the whole validation split is scored; the last one is the end."""
    align: int = Field(default=0, ge=0)
    """Rung marks are rounded to a multiple of this many tokens, 0 being one update. A study sets the common
    multiple of the update sizes in its space, so that all its trials are scored at the same marks."""
    batch_size: Count = 8
    """Sequences in one forward pass."""
    grad_accum: Count = 1
    """Forward passes to one update; the update averages over all their tokens."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Initial weights, data order and dropout each draw from a stream of their own, derived from this."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward and backward pass; weights stay fp32. auto: bf16 on a GPU that has it, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile, worth its 10 to 30 s only on long runs. auto: on a GPU, but for a mixture of experts."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train. auto: cuda, else mps, else cpu."""
    keep_checkpoints: Literal["none", "last", "best", "all"] = "last"
    """Which rungs leave a checkpoint on disk; best is by validation loss."""
    attention: Literal["auto", "explicit"] = "auto"
    """auto: fused, wherever attention dropout is 0. explicit: weights written out, to compare with."""
    diagnostics: bool = False
    """Measure attention entropy, expert load and kurtosis at each rung, which takes one more validation batch."""
    test: bool = False
    """Score the test split too, once, after the last rung; a search that looked at it would have none left."""
    spike_every: Count | None = None
    """Updates from one whose loss is multiplied by spike_scale to the next: an injected fault, to test clipping and
    recovery."""
    spike_scale: Positive | None = None
    """Factor on the loss of those updates; 1e38 makes their gradients overflow."""

    @model_validator(mode="after")
    def _spikes_have_a_size(self) -> Self:
        if (self.spike_every is None) != (self.spike_scale is None):
            raise ValueError(f"spike_every and spike_scale go together, got {self.spike_every} and {self.spike_scale}")
        return self

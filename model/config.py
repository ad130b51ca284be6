"""TrainConfig: everything that determines a training run, and nothing else."""

import math
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from model.data.corpus import Corpus, PythonDocs
from model.data.tokenizer import BPE, Tokenizer
from model.nn.architecture import GPT, Model, MoE
from model.nn.regularization import Regularization
from model.optim.clipping import Clip, Norm
from model.optim.muon import Muon
from model.optim.optimizers import AdamW, Optimizer
from model.optim.recovery import Recovery, Stop
from model.optim.schedule import Cosine, OneCycle, Schedule
from model.section import Count, Positive, Section

# Fields of `run` in which the runs of a pack may differ.
LOOSE = {"tokens", "rungs", "align", "grad_accum", "seed", "keep_checkpoints", "spike_every", "spike_scale"}


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


class TrainConfig(Section):
    """One training run. Runs with equal configs have equal losses on equal hardware."""

    data: Corpus = PythonDocs()
    tokenizer: Tokenizer = BPE()
    model: Model = GPT()
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Cosine()
    clip: Clip = Norm()
    regularization: Regularization = Regularization()
    recovery: Recovery = Stop()
    run: Run = Run()

    @model_validator(mode="before")
    @classmethod
    def _keep_components(cls, given: Any) -> Any:
        """Let a section without a name be the default component's: optimizer: {lr: 1e-3} is adamw's."""
        if not isinstance(given, dict):
            return given
        defaults = {key: getattr(field.default, "name", None) for key, field in cls.model_fields.items()}
        return {
            key: {"name": defaults[key], **value} if isinstance(value, dict) and defaults.get(key) else value
            for key, value in given.items()
        }

    @model_validator(mode="after")
    def _every_rung_has_an_update(self) -> Self:
        if self.run.tokens < self.run.rungs * self.update_tokens():
            least = self.run.rungs * self.update_tokens()
            raise ValueError(
                f"run.tokens must be at least rungs x batch_size x grad_accum x context = {least}, so that every "
                f"rung has an update, got {self.run.tokens}"
            )
        if self.rung_tokens() < self.update_tokens():
            raise ValueError(
                f"run.align must leave at least one update, {self.update_tokens()} tokens, between two rungs; "
                f"got {self.run.align}, which leaves {self.rung_tokens()}"
            )
        return self

    def update_tokens(self) -> int:
        """Return the tokens of one update."""
        return self.run.batch_size * self.run.grad_accum * self.model.context

    def rung_tokens(self) -> float:
        """Return the tokens between two rung marks, a whole number where marks are aligned."""
        spacing = self.run.tokens / self.run.rungs
        align = self.run.align or self.update_tokens()
        return max(1, round(spacing / align)) * align if align <= spacing else spacing

    def marks(self) -> list[int]:
        """Return the number of updates after which each rung is scored: the first at or past its mark."""
        spacing, update = self.rung_tokens(), self.update_tokens()
        return [math.ceil(rung * spacing / update) for rung in range(1, self.run.rungs + 1)]

    @model_validator(mode="after")
    def _fields_mean_something_together(self) -> Self:
        if problems := list(self._contradictions()):
            raise ValueError("; ".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        """Yield what means nothing in this combination, so that it is refused instead of ignored."""
        rule, shape, schedule = self.optimizer, self.model, self.schedule
        for key in ("head_lr", "head_decay"):
            if shape.tied and (value := getattr(rule, key)) is not None:
                yield f"optimizer.{key}: a tied model has no head of its own; leave it out, got {value}"
        if rule.scalar_lr is not None and not shape.has_scalars():
            yield f"optimizer.scalar_lr: the model has no gains, biases, skips or routers; got {rule.scalar_lr}"
        if rule.scalar_decay and not shape.has_scalars():
            yield f"optimizer.scalar_decay: the model has no gains, biases, skips or routers; got {rule.scalar_decay}"
        if isinstance(rule, Muon) and rule.adam_lr != Muon().adam_lr and not self._left_to_adam(rule):
            yield f"optimizer.adam_lr: every group has a rate of its own; leave it out, got {rule.adam_lr}"
        if isinstance(schedule, OneCycle) and schedule.beta1_dip is not None:
            beta1: float | None = getattr(rule, "beta1", None)
            if beta1 is None:
                yield f"schedule.beta1_dip: {rule.name} has no beta1; leave it out, got {schedule.beta1_dip}"
            elif schedule.beta1_dip >= beta1:
                yield f"schedule.beta1_dip: must be below optimizer.beta1 = {beta1}, got {schedule.beta1_dip}"
        if shape.document_mask and self.data.layout == "documents":
            yield "model.document_mask: a row of layout documents is one document; set data.layout=stream, got true"
        if isinstance(shape, MoE) and self.run.compile == "on":
            yield "run.compile: the experts' shares change from batch to batch; leave it auto, got on"
        if self.run.attention == "explicit" and self.regularization.numbers()["attention_dropout"] > 0:
            yield "run.attention: attention dropout writes the weights out anyway; leave it auto, got explicit"

    def _left_to_adam(self, rule: Muon) -> bool:
        """Return whether a group of this model takes Muon's adam_lr."""
        groups = {"embedding": True, "head": not self.model.tied, "scalar": self.model.has_scalars()}
        return any(there and getattr(rule, f"{group}_lr") is None for group, there in groups.items())

    def pack_key(self) -> str:
        """Return what runs must share to train side by side: all but numbers that are not shapes."""
        rule = self.optimizer
        loose: dict[str, Any] = {
            "data": {"drop_documents", "shuffle_documents", "curriculum"},
            "model": set(self.model.numbers()),
            "optimizer": {name for name, value in rule if isinstance(value, float | None)}
            | {"scale_lr", "scale_lr_tokens"},
            "schedule": True,
            "clip": {name for name, value in self.clip if isinstance(value, int | float | None)},
            "regularization": True,
            "recovery": {"spike", "at_most", "lr_factor"},
            "run": LOOSE,
        }
        shapes = {
            # Whether fused attention may be used: its last bits differ from the written-out one.
            "fused": self.regularization.numbers()["attention_dropout"] == 0,
            "ema": self.regularization.ema is not None,
            "layers": rule.layer_decay != 1,
            "watched": self.recovery.watches(),
        }
        return f"{self.model_dump_json(exclude=loose)} {shapes}"

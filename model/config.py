"""TrainConfig, the configuration of a training run. It holds everything that determines the result of the run."""

import math
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from model.data.corpus import Corpus, PythonDocs
from model.data.corpus_base import TRAINING_FIELDS
from model.data.tokenizer import BPE, Tokenizer
from model.nn.architecture import GPT, Model, MoE
from model.nn.parametrization import factors
from model.nn.regularization import Regularization
from model.optim.clipping import Clip, Norm
from model.optim.muon import Muon
from model.optim.optimizer import UpdateRule, decay_of_half_life
from model.optim.optimizers import AdamW, Optimizer
from model.optim.recovery import Recovery, Stop
from model.optim.schedule import Cosine, OneCycle, Schedule
from model.section import Count, Positive, Section, updated

# Fields of `run` in which the runs of a pack can differ.
FREE_RUN_FIELDS = {"tokens", "rungs", "align", "grad_accum", "seed", "keep_checkpoints", "spike_every", "spike_scale"}

# Version of the trainer's arithmetic. Raise it with a change after which equal configurations have other last bits.
# 1: one network per run, packs by vmap (hpo 0.1). 2: a network with a leading run axis.
ENGINE = 2

# Fields whose `auto` depends on the machine, and on which the last bits of a loss depend.
ARITHMETIC_FIELDS = ("run.device", "run.precision", "run.compile", "run.attention", "run.graph_numbers")

GraphNumber = Literal[
    "embedding_dropout", "attention_dropout", "residual_dropout", "mlp_dropout", "head_dropout", "mask_tokens",
    "embedding_noise", "balance", "router_noise",
]  # fmt: skip
"""Numbers inside the network that act only in training, by which the runs of a pack can differ."""

# Fields of `data` in which runs can differ and still have comparable losses.
COMPARABLE_DATA_FIELDS = TRAINING_FIELDS


class Run(Section):
    """Length, batch, seed and hardware of one run."""

    tokens: Count = 400_000
    """Number of tokens to train on: sequences times context, padding included. Rounded to whole rungs."""
    rungs: Count = 8
    """Number of rungs: equally spaced marks, in tokens, at which the validation split is evaluated. The last rung is
    the end of the run."""
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
    on a machine and 3 s later. auto: the first worker of a study measures whether that shortens the work ahead, and a
    single run is compiled on a GPU only. A mixture of experts is never compiled."""
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


class TrainConfig(Section):
    """Configuration of one training run. Runs with equal configurations have equal losses on equal hardware."""

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
    def _add_default_names(cls, values: Any) -> Any:
        """Use the default component for a section without a name: optimizer: {lr: 1e-3} configures adamw."""
        if not isinstance(values, dict):
            return values
        defaults = {key: getattr(field.default, "name", None) for key, field in cls.model_fields.items()}
        return {
            key: {"name": defaults[key], **value} if isinstance(value, dict) and defaults.get(key) else value
            for key, value in values.items()
        }

    @model_validator(mode="after")
    def _check_rungs(self) -> Self:
        if self.run.tokens < self.run.rungs * self.update_tokens():
            minimum = self.run.rungs * self.update_tokens()
            raise ValueError(
                f"run.tokens must be at least rungs x batch_size x grad_accum x context = {minimum}, so that every "
                f"rung has an update, got {self.run.tokens}"
            )
        if self.rung_tokens() < self.update_tokens():
            raise ValueError(
                f"run.batch_size x run.grad_accum x model.context must be at most the {self.rung_tokens():g} tokens "
                f"between two rungs, which are a multiple of run.align, {self.run.align}; got {self.update_tokens()}; "
                "use a smaller batch, more run.tokens, or run.align: 0"
            )
        return self

    def update_tokens(self) -> int:
        """Return the number of tokens per update."""
        return self.run.batch_size * self.run.grad_accum * self.model.context

    def derived(self) -> dict[str, float]:
        """Return the raw fields that follow from half-lives and a decay horizon, by dotted path, such as
        {"optimizer.beta2": 0.95}."""
        tokens, half_life = self.update_tokens(), self.regularization.ema_half_life
        values = {f"optimizer.{field}": value for field, value in self.optimizer.derived(tokens).items()}
        return values | ({} if half_life is None else {"regularization.ema": decay_of_half_life(half_life, tokens)})

    def with_raw_fields(self) -> Self:
        """Return the same run with raw fields, such as beta2, in place of half-lives and a decay horizon."""
        values = self.derived()
        return updated(self, values) if values else self

    def update_rule(self) -> UpdateRule:
        """Return the optimizer with the factors of model.parametrization on its hyperparameters."""
        if self.model.parametrization == "standard":
            return self.optimizer
        own = factors(self.model)
        return self.optimizer.rescaled(own.hidden_lr, own.hidden_decay, own.eps)

    def rung_tokens(self) -> float:
        """Return the number of tokens between two rung marks, which is whole if the marks are aligned."""
        spacing = self.run.tokens / self.run.rungs
        align = self.run.align or self.update_tokens()
        return max(1, round(spacing / align)) * align if align <= spacing else spacing

    def marks(self) -> list[int]:
        """Return the number of updates at which each rung is evaluated: the first update at or past its mark."""
        spacing, update = self.rung_tokens(), self.update_tokens()
        return [math.ceil(rung * spacing / update) for rung in range(1, self.run.rungs + 1)]

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if problems := list(self._contradictions()):
            raise ValueError("; ".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        """Yield an error message for each field that has no effect in combination with the others."""
        optimizer, model, schedule = self.optimizer, self.model, self.schedule
        for key in ("head_lr", "head_decay"):
            if model.tied and (value := getattr(optimizer, key)) is not None:
                yield f"optimizer.{key}: has no effect on a tied head; leave it out, got {value}"
        no_scalars = "the model has no gains, biases, skips or routers; leave it out"
        if optimizer.scalar_lr is not None and not model.has_scalars():
            yield f"optimizer.scalar_lr: {no_scalars}, got {optimizer.scalar_lr}"
        if optimizer.scalar_decay and not model.has_scalars():
            yield f"optimizer.scalar_decay: {no_scalars}, got {optimizer.scalar_decay}"
        if isinstance(optimizer, Muon) and optimizer.adam_lr != Muon().adam_lr and not self._uses_adam_lr(optimizer):
            unused = "has no effect if every group has its own rate; leave it out"
            yield f"optimizer.adam_lr: {unused}, got {optimizer.adam_lr}"
        yield from self._contradictions_of_derived()
        kind = model.parametrization
        if kind != "standard" and not optimizer.has_parametrizations:
            yield f"optimizer.name: must be adamw or muon with model.parametrization {kind}, got {optimizer.name}"
        if kind == "completep" and optimizer.scalar_decay:
            yield f"optimizer.scalar_decay: must be 0 with model.parametrization {kind}, got {optimizer.scalar_decay}"
        if isinstance(schedule, OneCycle) and schedule.beta1_dip is not None:
            beta1: float | None = self.derived().get("optimizer.beta1", getattr(optimizer, "beta1", None))
            if beta1 is None:
                yield f"schedule.beta1_dip: {optimizer.name} has no beta1; leave it out, got {schedule.beta1_dip}"
            elif schedule.beta1_dip >= beta1:
                yield f"schedule.beta1_dip: must be below optimizer.beta1 = {beta1}, got {schedule.beta1_dip}"
        if model.document_mask and self.data.layout == "documents":
            yield "model.document_mask: has no effect with data.layout=documents; set data.layout=stream, got true"
        if isinstance(model, MoE) and self.run.compile == "on":
            yield "run.compile: must be auto or off for a mixture of experts, whose shapes vary per batch, got on"
        if self.run.attention == "explicit" and self.regularization.numbers()["attention_dropout"] > 0:
            yield "run.attention: attention dropout writes the weights out anyway; leave it auto, got explicit"

    def _contradictions_of_derived(self) -> Iterator[str]:
        """Yield an error message for each half-life or horizon that gives a raw field no valid value."""
        tokens, horizon = self.update_tokens(), getattr(self.optimizer, "decay_horizon", None)
        if horizon is not None and horizon < tokens:
            yield f"optimizer.decay_horizon: must be at least the {tokens} tokens of an update, got {horizon}"
        for path, value in self.derived().items():
            section, _, raw = path.partition(".")
            if not path.endswith("decay") and value >= 1:
                other = getattr(self, section).forms[raw]
                given = getattr(getattr(self, section), other)
                yield f"{section}.{other}: must be shorter, because {raw} would round to 1, got {given}"

    def _uses_adam_lr(self, optimizer: Muon) -> bool:
        """Return whether any parameter group of this model has the learning rate adam_lr."""
        groups = {"embedding": True, "head": not self.model.tied, "scalar": self.model.has_scalars()}
        return any(exists and getattr(optimizer, f"{group}_lr") is None for group, exists in groups.items())

    def pack_key(self) -> str:
        """Return a key that is equal for runs that can train in one pack.

        Runs of a pack can differ in numbers that change no tensor shape, such as the learning rate.
        """
        free: dict[str, Any] = {
            "data": {"drop_documents", "shuffle_documents", "curriculum"},
            "model": set(self.model.numbers()),
            "optimizer": {name for name, value in self.optimizer if isinstance(value, float | None)}
            | {"scale_lr", "scale_lr_tokens"},
            "schedule": True,
            "clip": {name for name, value in self.clip if isinstance(value, int | float | None)},
            "regularization": True,
            "recovery": {"spike", "at_most", "lr_factor"},
            "run": FREE_RUN_FIELDS,
        }
        shapes = {
            # Fused and explicit attention differ in the last bits, so the runs of a pack use the same one.
            "fused": self.regularization.numbers()["attention_dropout"] == 0
            and "attention_dropout" not in self.run.graph_numbers,
            "ema": self.regularization.has_average(),
            "layers": self.optimizer.layer_decay != 1,
            "watched": self.recovery.watches(),
        }
        return f"{self.model_dump_json(exclude=free)} {shapes}"

"""TrainConfig, the configuration of a training run. It holds everything that determines the result of the run."""

import math
from collections.abc import Iterator
from typing import Any, Self

from pydantic import model_validator

from model.data.corpus import Corpus, PythonDocs
from model.data.corpus_base import TRAINING_FIELDS
from model.data.tokenizer import BPE, Tokenizer
from model.nn.architecture import GPT, Model
from model.nn.parametrization import factors
from model.nn.regularization import Regularization
from model.optim.clipping import Clip, Norm
from model.optim.muon import Muon
from model.optim.optimizer import UpdateRule, decay_of_half_life
from model.optim.optimizers import AdamW, Optimizer
from model.optim.recovery import Recovery, Stop
from model.optim.schedule import Cosine, OneCycle, Schedule
from model.run_config import FREE_RUN_FIELDS, Run
from model.section import Section, updated

# Version of the trainer's arithmetic. Raise it with a change after which equal configurations have other last bits.
# 1: one network per run, packs by vmap (hpo 0.1). 2: a network with a leading run axis.
ENGINE = 2

# Fields whose `auto` depends on the machine, and on which the last bits of a loss depend.
ARITHMETIC_FIELDS = ("run.device", "run.precision", "run.compile", "run.attention", "run.graph_numbers")

# Fields of `data` in which runs can differ and still have comparable losses.
COMPARABLE_DATA_FIELDS = TRAINING_FIELDS


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
        yield from self._contradictions_of_parametrization()
        if isinstance(schedule, OneCycle) and schedule.beta1_dip is not None:
            beta1: float | None = self.derived().get("optimizer.beta1", getattr(optimizer, "beta1", None))
            if beta1 is None:
                yield f"schedule.beta1_dip: {optimizer.name} has no beta1; leave it out, got {schedule.beta1_dip}"
            elif schedule.beta1_dip >= beta1:
                yield f"schedule.beta1_dip: must be below optimizer.beta1 = {beta1}, got {schedule.beta1_dip}"
        if model.document_mask and self.data.layout == "documents":
            yield "model.document_mask: has no effect with data.layout=documents; set data.layout=stream, got true"
        if self.run.attention == "explicit" and self.regularization.numbers()["attention_dropout"] > 0:
            yield "run.attention: attention dropout writes the weights out anyway; leave it auto, got explicit"

    def _contradictions_of_parametrization(self) -> Iterator[str]:
        """Yield an error message for each field that no table of the parametrization has."""
        kind = self.model.parametrization
        if kind != "standard" and not self.optimizer.has_parametrizations:
            yield f"optimizer.name: must be adamw or muon with model.parametrization {kind}, got {self.optimizer.name}"
        if kind == "completep" and (decay := self.optimizer.scalar_decay):
            yield f"optimizer.scalar_decay: must be 0 with model.parametrization {kind}, got {decay}"

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

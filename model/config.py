"""TrainConfig: everything that determines a training run, and nothing else."""

import math
from typing import Any, Self

from pydantic import model_validator

from model.clip import Clip, Norm
from model.corpus import Corpus, PythonDocs
from model.gpt import GPT, Model
from model.optim import AdamW, Optimizer
from model.regularization import Regularization
from model.run import Run
from model.schedule import Cosine, Schedule
from model.section import Section
from model.tokenizer import BPE, Tokenizer


class TrainConfig(Section):
    """One training run. Runs with equal configs have equal losses on equal hardware."""

    data: Corpus = PythonDocs()
    tokenizer: Tokenizer = BPE()
    model: Model = GPT()
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Cosine()
    clip: Clip = Norm()
    regularization: Regularization = Regularization()
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

    def pack_key(self) -> str:
        """Return what runs must share to train side by side: all but numbers that are not shapes."""
        loose: dict[str, Any] = {
            "optimizer": {name: True for name, value in self.optimizer if isinstance(value, float)},
            "schedule": True,
            "clip": True,
            "regularization": True,
            "run": {"tokens", "rungs", "align", "grad_accum", "seed", "keep_checkpoints"},
        }
        # Whether fused attention may be used is part of the shape: its last bits differ from the written-out one.
        fused = self.regularization.at("attention") == 0
        return f"{self.model_dump_json(exclude=loose)} fused={fused}"

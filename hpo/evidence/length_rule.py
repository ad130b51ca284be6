"""Carry the configurations of a comparison over to runs of another length than those of the search."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.analysis.snapshot import Snapshot
from hpo.console import say
from hpo.errors import Problem
from hpo.storage.retry import OpenStorage
from hpo.study.spec import Study
from hpo.transfer.guard import carried_config, guard_lines, length_problems
from hpo.transfer.lookup import Fitted, find_fitted
from hpo.transfer.rule import Rule
from hpo.transfer.rules import Move
from model.config import TrainConfig
from model.section import updated


@dataclass
class LengthRule:
    """A rule for the configurations of a comparison, which prints once what does not carry over.

    tokens: length of the new runs. None: that of the search.
    """

    store: OpenStorage
    search: Snapshot
    tokens: int | None
    rule: Rule | None
    printed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Check that the rule has something to do.

        Raises:
            Problem: it has not.
        """
        if self.tokens is None and self.rule not in (None, Rule.copy):
            raise Problem(f"--rule: must be used with --tokens, the length of the new runs, got {self.rule}")

    def carried_arms(
        self, study: Study, arms: Mapping[str, Mapping[str, Any]], reference: str
    ) -> dict[str, Mapping[str, Any]]:
        """Return the arms of a confirmation with the fields that the rule changes.

        study: the search. reference: name of the arm with which the others are compared.

        Raises:
            Problem: the rule cannot be applied.
        """
        if self.rule is Rule.fitted and len(arms) > 2:
            raise Problem(
                f"--top: must be 1 with --rule fitted, because a ladder predicts one configuration, got {len(arms) - 1}"
            )
        configs = {arm: study.configured(values) for arm, values in arms.items()}
        return {
            arm: {**values, **self.values(f"{arm} of {study.name}", configs[arm], arm == reference)}
            for arm, values in arms.items()
        }

    def carried(self, what: str, config: BaseModel, is_reference: bool = False) -> BaseModel:
        """Return a configuration of the search at the length of the new runs. The arguments are those of `values`.

        Raises:
            Problem: the rule cannot be applied.
        """
        values = self.values(what, config, is_reference)
        if self.tokens is None or not isinstance(config, TrainConfig):
            return config
        return updated(config, {"run.tokens": self.tokens, "run.align": 1, **values})

    def values(self, what: str, config: BaseModel, is_reference: bool = False) -> dict[str, Any]:
        """Return the fields that the rule changes in a configuration of the search, besides its length.

        what: the configuration, for messages. is_reference: whether the others are compared with it. The rule `fitted`
        predicts one best configuration, so the reference is copied.

        Raises:
            Problem: the rule cannot be applied.
        """
        rule = self.rule or Rule.copy
        if self.tokens is None:
            return {}
        if not isinstance(config, TrainConfig):
            if rule is not Rule.copy:
                raise Problem(f"--rule: must be copy with a configuration class of your own, got {rule}")
            return {}
        try:
            move = Move(config, updated(config, {"run.tokens": self.tokens, "run.align": 1}))
        except ValidationError as error:
            raise Problem(*length_problems(error)) from None
        if not move.changes_scale() or (is_reference and rule is Rule.fitted):
            return {}
        prints = not self.printed and not is_reference
        fitted = find_fitted(self.store, self.search.name, move) if prints or rule is Rule.fitted else Fitted()
        values = carried_config(move, rule, fitted)[1]
        if prints:
            self.printed = True
            say("\n".join(guard_lines(what, move, rule, fitted)))
        return values

"""The schema of a ledger of claims: what others claim lowers a loss, and the test of each claim."""

import itertools
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from hpo.search.prior import Choice
from model.section import Section


def _of_form(pattern: str, example: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be of the form {example}, got {text!r}")
        return text

    return AfterValidator(check)


ClaimId = Annotated[str, _of_form(r"C[0-9]{3}-[0-9]{2}", "C000-01")]
Sentence = Annotated[str, Field(min_length=1)]
PytestNode = Annotated[str, _of_form(r"tests/[\w/]+\.py::test_\w+", "tests/test_claims.py::test_it")]

Metric = Literal[
    "val_loss", "val_bpb", "ema_val_loss", "ema_val_bpb", "tokens_per_second", "finished", "clipped", "kurtosis"
]
"""A metric of the last rung. kurtosis: the largest over the layers. finished: 1 if the run reached its end, else 0."""

FieldValues = dict[str, Choice]
"""Dotted field -> value, in place of the value of the base."""


class ClaimedEffect(Section):
    """The claimed effect."""

    text: Sentence
    """In the words and the metric of the report."""
    value: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None
    """The smallest claimed effect, if the report gives a number."""
    unit: Literal["share", "level"] | None = None
    """share: of the reference's metric, so -0.1 is ten percent lower. level: the metric itself, at most that."""
    within: Annotated[float, Field(gt=0)] | None = None
    """For a claim of no effect, whose value is 0: the largest change that still counts as no effect."""

    @model_validator(mode="after")
    def _number_has_a_unit(self) -> Self:
        if (self.value is None) != (self.unit is None):
            raise ValueError(f"value and unit must be given together, got {self.value} and {self.unit}")
        if (self.value == 0) != (self.within is not None):
            raise ValueError(
                f"within must be given with a value of 0, and only then, got {self.within} and {self.value}"
            )
        return self


class ReportedEvidence(Section):
    """How the report supports the claim."""

    how: tuple[Literal["measured", "expected", "arithmetic", "dead-code", "contradicted"], ...]
    """measured: by runs. expected: by no runs. arithmetic: by a calculation. dead-code: the change had no effect in the
    report's code. contradicted: the report's own measurements contradict it."""
    n: Annotated[int, Field(gt=0)] | None = None
    """If measured: the number of runs per side, of the side with fewer."""
    note: str = ""

    @model_validator(mode="after")
    def _measured_has_an_n(self) -> Self:
        if not self.how:
            raise ValueError("how: must not be empty")
        if ("measured" in self.how) != (self.n is not None):
            raise ValueError(f"n must be given with measured, and only then, got {self.n} and {', '.join(self.how)}")
        return self


class ArmsTest(Section):
    """A test by runs of two or more arms (configurations), the first of which is the reference."""

    base: Sentence
    """Name of the base configuration of all arms."""
    equal: Literal["tokens", "updates", "seconds"]
    """What is equal for all arms. seconds: metrics are interpolated at the time when the first arm ended."""
    metric: Metric | dict[str, Metric]
    """The metric that is compared; arm -> metric if one run is scored in two ways."""
    arms: dict[str, FieldValues] | None = None
    """Name of an arm -> fields that differ from the base."""
    factors: dict[str, list[Choice] | dict[str, FieldValues]] | None = Field(default=None, min_length=1)
    """Instead of arms: factors, fully crossed. Field -> its values, or name -> {level -> fields that differ}. The first
    level of every factor is the reference."""
    claimed: str | None = None
    """The arm that the claim is about, by default the second."""
    tuned: tuple[str, ...] = ()
    """Factors that are not part of the claim: each arm first gets the levels that are best for it."""
    contrast: Literal["difference", "interaction"] = "difference"
    """interaction: the effect of all factors at their last levels, minus the effects of each factor alone."""
    seeds: Annotated[int, Field(ge=3)] = 3
    """Number of pairs of runs."""

    @model_validator(mode="after")
    def _arms_or_factors(self) -> Self:
        if (self.arms is None) == (self.factors is None):
            raise ValueError("must have either arms or factors")
        if self.contrast == "interaction" and (self.factors is None or len(self.factors) - len(self.tuned) < 2):
            raise ValueError("contrast: an interaction needs two or more factors that are not tuned")
        if unknown := [name for name in self.tuned if name not in (self.factors or {})]:
            raise ValueError(f"tuned: must be among the factors, got {unknown[0]}")
        names = list(self.all_arms())
        if isinstance(self.metric, dict) and list(self.metric) != names:
            raise ValueError(f"metric: must name every arm in the order of arms, got {', '.join(self.metric)}")
        compared = list(self.all_arms(without=self.tuned))
        if len(compared) < 2:
            raise ValueError("must have at least two arms that differ in more than tuned factors")
        if self.claimed is not None and self.claimed not in compared[1:]:
            raise ValueError(f"claimed: must be one of {', '.join(compared[1:])}, got {self.claimed}")
        return self

    def all_arms(self, without: tuple[str, ...] = ()) -> dict[str, FieldValues]:
        """Return arm -> fields that differ from the base, with all factors crossed except those in `without`."""
        if self.factors is None:
            return dict(self.arms or {})
        crossed = [list(_levels(name, self.factors[name])) for name in self.factors if name not in without]
        return {
            ", ".join(name for name, _ in levels): {path: v for _, values in levels for path, v in values.items()}
            for levels in itertools.product(*crossed)
        }

    def compared_arms(self) -> dict[str, list[str]]:
        """Return compared arm, named without the tuned factors -> the arms that differ only in tuned factors."""
        if self.factors is None:
            return {name: [name] for name in self.arms or {}}
        arms: dict[str, list[str]] = {}
        for levels in itertools.product(*([(f, n) for n, _ in _levels(f, self.factors[f])] for f in self.factors)):
            own = ", ".join(name for factor, name in levels if factor not in self.tuned)
            arms.setdefault(own, []).append(", ".join(name for _, name in levels))
        return arms

    def contrast_terms(self) -> dict[str, int]:
        """Return arm -> 1 or -1, the weights of the arms' effects in the effect of the claim."""
        if self.contrast == "difference":
            return {self.claimed or list(self.compared_arms())[1]: 1}
        factors = self.factors or {}
        levels = [[name for name, _ in _levels(f, factors[f])] for f in factors if f not in self.tuned]
        terms = {", ".join(names[-1] for names in levels): 1}
        for own in levels:
            alone = ", ".join(names[-1] if names is own else names[0] for names in levels)
            terms[alone] = terms.get(alone, 0) - 1
        return terms

    def verdict_arms(self) -> list[str]:
        """Return the arms that enter the verdict, the reference first."""
        return list(dict.fromkeys([next(iter(self.compared_arms())), *self.contrast_terms()]))

    def arms_run_first(self) -> list[str]:
        """Return the arms to run first: those of the verdict, or all at equal seconds.

        At equal seconds, an arm is evaluated at the time when the first arm of its study ended.
        """
        return list(self.compared_arms()) if self.equal == "seconds" else self.verdict_arms()

    def metric_of(self, arm: str) -> Metric:
        """Return the metric of an arm."""
        return self.metric[arm] if isinstance(self.metric, dict) else self.metric


class ArithmeticTest(Section):
    """A test by calculation."""

    arithmetic: PytestNode
    """The pytest test that calculates it, as file::function."""
    computation: Sentence
    """What the test calculates, in words."""
    shows: Literal["holds", "refuted"]
    """The verdict if the pytest test passes."""


def _kind(test: Any) -> str:
    """Return the kind of a test, by the key that only a calculation has, so that each mistake is reported once."""
    calculated = "arithmetic" in test if isinstance(test, dict) else isinstance(test, ArithmeticTest)
    return "arithmetic" if calculated else "arms"


ClaimTest = Annotated[
    Annotated[ArmsTest, Tag("arms")] | Annotated[ArithmeticTest, Tag("arithmetic")], Discriminator(_kind)
]


class LedgerClaim(Section):
    """One claim of a report, and its test."""

    claim: Sentence
    """The claim, as one sentence."""
    report: Sentence
    """S and the first number of the id, such as S001 for C001-02."""
    effect: ClaimedEffect
    """The claimed effect."""
    known: ReportedEvidence
    """How the report supports the claim."""
    test: ClaimTest
    """The test by runs or by a calculation."""


class Ledger(Section):
    """A ledger: claims by id."""

    claims: dict[ClaimId, LedgerClaim] = Field(min_length=1)

    def summary(self) -> str:
        """Return the number of claims, of arms and of calculations, as one line."""
        arms = [len(claim.test.all_arms()) for claim in self.claims.values() if isinstance(claim.test, ArmsTest)]
        return f"{len(self.claims)} claims, {sum(arms)} arms of {len(arms)}, {len(self.claims) - len(arms)} arithmetic"


def _levels(factor: str, levels: list[Choice] | dict[str, FieldValues]) -> Iterator[tuple[str, FieldValues]]:
    if isinstance(levels, dict):
        yield from ((f"{factor}={name}", values) for name, values in levels.items())
    else:
        yield from ((f"{factor}={_yaml_text(value)}", {factor: value}) for value in levels)


def _yaml_text(value: Choice) -> str:
    """Return a value in YAML notation."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)

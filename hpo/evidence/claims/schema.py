"""What a ledger is: what others say lowers a loss, and the runs that would show it. hpo/ledger.py reads such files."""

import itertools
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from hpo.search.ranges import Choice
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
"""A number of the last rung; kurtosis: the largest of the layers; finished: 1 for a run that reached its end, or 0."""

FieldValues = dict[str, Choice]
"""Dotted field -> value, over the base."""


class ClaimedEffect(Section):
    """What is said to happen."""

    text: Sentence
    """In the report's own measure."""
    value: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None
    """The smallest effect that the report claims, where it gives a number."""
    unit: Literal["share", "level"] | None = None
    """share: of the reference's metric, -0.1 is ten percent lower. level: the metric itself, which is at most that."""
    within: Annotated[float, Field(gt=0)] | None = None
    """Of a claim that nothing changes, a value of 0: the change that counts as nothing."""

    @model_validator(mode="after")
    def _number_has_a_unit(self) -> Self:
        if (self.value is None) != (self.unit is None):
            raise ValueError(f"value and unit go together, got {self.value} and {self.unit}")
        if (self.value == 0) != (self.within is not None):
            raise ValueError(f"within goes with a value of 0, got {self.within} and {self.value}")
        return self


class ReportedEvidence(Section):
    """How the report came to say so."""

    how: tuple[Literal["measured", "expected", "arithmetic", "dead-code", "contradicted"], ...]
    """measured: by runs. expected: not at all. dead-code: it never acted. contradicted: by what was measured too."""
    n: Annotated[int, Field(gt=0)] | None = None
    """Runs on the side that has fewer, where measured."""
    note: str = ""

    @model_validator(mode="after")
    def _measured_has_an_n(self) -> Self:
        if not self.how:
            raise ValueError("how: must not be empty")
        if ("measured" in self.how) != (self.n is not None):
            raise ValueError(f"n goes with measured, got {self.n} and {', '.join(self.how)}")
        return self


class ArmsTest(Section):
    """A test by runs: two or more configurations, the first of which is the reference."""

    base: Sentence
    """Name of the base that all arms begin from."""
    equal: Literal["tokens", "updates", "seconds"]
    """What all arms get the same of. seconds: curves are read, between rungs, where the first arm to end ended."""
    metric: Metric | dict[str, Metric]
    """What is compared; arm -> metric where one run is scored in two ways."""
    arms: dict[str, FieldValues] | None = None
    """Name -> what differs from the base."""
    factors: dict[str, list[Choice] | dict[str, FieldValues]] | None = Field(default=None, min_length=1)
    """Instead of arms, all crossed: field -> its values, or name -> {level -> what differs}; the first ones are the
    reference."""
    claimed: str | None = None
    """The arm that the claim is about; none: the second."""
    tuned: tuple[str, ...] = ()
    """Factors that are no part of the claim: of arms that differ only there, the best goes on, each on its own."""
    contrast: Literal["difference", "interaction"] = "difference"
    """interaction: the arm with all factors at their last levels, less the sum of what each of them does alone."""
    seeds: Annotated[int, Field(ge=3)] = 3
    """Pairs of runs, at least."""

    @model_validator(mode="after")
    def _arms_or_factors(self) -> Self:
        if (self.arms is None) == (self.factors is None):
            raise ValueError("must give arms or factors, one of them")
        if self.contrast == "interaction" and (self.factors is None or len(self.factors) - len(self.tuned) < 2):
            raise ValueError("contrast: an interaction is one of two or more factors")
        if unknown := [name for name in self.tuned if name not in (self.factors or {})]:
            raise ValueError(f"tuned: must be among the factors, got {unknown[0]}")
        names = list(self.all_arms())
        if isinstance(self.metric, dict) and list(self.metric) != names:
            raise ValueError(f"metric: must name every arm in the order of arms, got {', '.join(self.metric)}")
        contestants = list(self.all_arms(without=self.tuned))
        if len(contestants) < 2:
            raise ValueError("must have two arms at least, besides what is tuned")
        if self.claimed is not None and self.claimed not in contestants[1:]:
            raise ValueError(f"claimed: must be one of {', '.join(contestants[1:])}, got {self.claimed}")
        return self

    def all_arms(self, without: tuple[str, ...] = ()) -> dict[str, FieldValues]:
        """Return name -> what differs from the base, factors crossed; those in `without` left out."""
        if self.factors is None:
            return dict(self.arms or {})
        crossed = [list(_levels(name, self.factors[name])) for name in self.factors if name not in without]
        return {
            ", ".join(name for name, _ in levels): {path: v for _, values in levels for path, v in values.items()}
            for levels in itertools.product(*crossed)
        }

    def compared_arms(self) -> dict[str, list[str]]:
        """Return name without the tuned factors -> names of the arms that differ only there, one of which goes on."""
        if self.factors is None:
            return {name: [name] for name in self.arms or {}}
        found: dict[str, list[str]] = {}
        for levels in itertools.product(*([(f, n) for n, _ in _levels(f, self.factors[f])] for f in self.factors)):
            own = ", ".join(name for factor, name in levels if factor not in self.tuned)
            found.setdefault(own, []).append(", ".join(name for _, name in levels))
        return found

    def contrast_terms(self) -> dict[str, int]:
        """Return the arms whose effects, against the reference, are added and taken away to make that of the claim."""
        if self.contrast == "difference":
            return {self.claimed or list(self.compared_arms())[1]: 1}
        factors = self.factors or {}
        levels = [[name for name, _ in _levels(f, factors[f])] for f in factors if f not in self.tuned]
        found = {", ".join(names[-1] for names in levels): 1}
        for own in levels:
            alone = ", ".join(names[-1] if names is own else names[0] for names in levels)
            found[alone] = found.get(alone, 0) - 1
        return found

    def verdict_arms(self) -> list[str]:
        """Return the arms that enter the verdict, the reference first."""
        return list(dict.fromkeys([next(iter(self.compared_arms())), *self.contrast_terms()]))

    def arms_run_first(self) -> list[str]:
        """Return the arms of the verdict, and at equal seconds all: they are read where the first of a study ended."""
        return list(self.compared_arms()) if self.equal == "seconds" else self.verdict_arms()

    def metric_of(self, arm: str) -> Metric:
        """Return what an arm is scored by."""
        return self.metric[arm] if isinstance(self.metric, dict) else self.metric


class ArithmeticTest(Section):
    """A test by calculation."""

    arithmetic: PytestNode
    """The pytest node that does it."""
    computation: Sentence
    """What it computes, in words."""
    shows: Literal["holds", "refuted"]
    """The verdict, if the calculation is right."""


def _kind(test: Any) -> str:
    """Tell the two kinds of test apart by the key that only a calculation has, so that a mistake is told once."""
    calculated = "arithmetic" in test if isinstance(test, dict) else isinstance(test, ArithmeticTest)
    return "arithmetic" if calculated else "arms"


ClaimTest = Annotated[
    Annotated[ArmsTest, Tag("arms")] | Annotated[ArithmeticTest, Tag("arithmetic")], Discriminator(_kind)
]


class Claim(Section):
    """One sentence of a report that can be true or false."""

    claim: Sentence
    report: Sentence
    """S and the number in the id."""
    effect: ClaimedEffect
    known: ReportedEvidence
    test: ClaimTest


class Ledger(Section):
    """All claims, by id."""

    claims: dict[ClaimId, Claim] = Field(min_length=1)

    def summary(self) -> str:
        """Return how many claims there are, and of which kinds."""
        arms = [len(claim.test.all_arms()) for claim in self.claims.values() if isinstance(claim.test, ArmsTest)]
        return f"{len(self.claims)} claims, {sum(arms)} arms of {len(arms)}, {len(self.claims) - len(arms)} arithmetic"


def _levels(factor: str, levels: list[Choice] | dict[str, FieldValues]) -> Iterator[tuple[str, FieldValues]]:
    if isinstance(levels, dict):
        yield from ((f"{factor}={name}", values) for name, values in levels.items())
    else:
        yield from ((f"{factor}={_yaml_text(value)}", {factor: value}) for value in levels)


def _yaml_text(value: Choice) -> str:
    """Return a value as one writes it in YAML."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)

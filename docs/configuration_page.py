"""The page docs/configuration.md: every field of a study file, of a training configuration and of a claims file."""

from collections.abc import Iterator

from docs.drawing import GENERATED
from docs.field_tables import components, described, table
from hpo.evidence.claims.schema import ArithmeticTest, ArmsTest, ClaimedEffect, LedgerClaim, ReportedEvidence
from hpo.replay.description import Arrays, CurvesFile
from hpo.search.prior import ChoicePrior, Prior
from hpo.search.ranges import Choices, Range
from hpo.study.limits import Budget, Limits
from hpo.study.spec import StudyFile
from model.config import TrainConfig

INTRODUCTION = """# Configuration reference

A **study file** describes a search, and a **training configuration** describes one training run. Both are YAML files. \
The `base` of a study file is a training configuration, and `hpo export` writes a complete one. Every field of a \
training configuration has a dotted path, such as `optimizer.lr`. The path is the same in a `space`, in \
`--set optimizer.lr=3e-4`, in the dashboard and in exported files."""
ARMS = """## `arms`

A study file with `arms` and `seeds` instead of a `space` compares configurations. Every arm runs once with every seed,
and `hpo launch` prints the paired differences from the first arm:

```yaml
# Does the warmup matter here?
base: {from: unet-small}
arms: {none: {schedule.warmup: 0.0}, short: {schedule.warmup: 0.05}, long: {schedule.warmup: 0.2}}
seeds: [1, 2, 3, 4, 5]
```"""
LEDGER = """# Claims file

`hpo claims --ledger FILE` tests the claims of a YAML file. Each claim has an id such as C001-02, in which 001 is the
number of the report. This file holds one claim:

```yaml
claims:
  C001-01:
    claim: A learning rate of 1e-2 instead of 1e-3 lowers the loss.
    report: S001
    effect: {text: about 5 percent, value: -0.05, unit: share}
    known: {how: [measured], n: 1}
    test:
      base: microgpt-small
      equal: tokens
      metric: val_loss
      arms: {slow: {optimizer.lr: 1e-3}, fast: {optimizer.lr: 1e-2}}
```

The first arm is the reference. `hpo check FILE` checks a claims file. The comments at the top of `studies/claims.yaml`
state how the effect and the verdict follow from the runs."""
CURVES = """# Description of recorded curves

`hpo replay --curves FILE` reads the curves that a YAML file describes. [Samplers and pruners](search.md) has
examples."""


def configuration_page() -> str:
    """Return docs/configuration.md."""
    parts = [INTRODUCTION, *study_file(), *training_configuration(), *claims_file(), *recorded_curves()]
    return GENERATED + "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def study_file() -> Iterator[str]:
    """Yield the parts about a study file."""
    yield from ("# Study file", table(StudyFile), ARMS)
    yield from ("## `budget`", described(Budget), table(Budget, "budget."))
    yield from ("## `limits`", described(Limits), table(Limits, "limits."))
    yield "## `space`"
    yield "Each key is the dotted path of a field. Its value is a range or a list of choices."
    yield from ("### Range", described(Range), table(Range))
    yield from ("### Choices", described(Choices), table(Choices))
    yield from ("### Prior of a range", described(Prior), table(Prior, "prior."))
    yield from ("### Prior of choices", described(ChoicePrior), table(ChoicePrior, "prior."))
    for key in ("sampler", "pruner"):
        yield from (f"## `{key}`", *components(StudyFile, key, f"{key}."))


def training_configuration() -> Iterator[str]:
    """Yield the parts about a training configuration."""
    yield "# Training configuration"
    for key in TrainConfig.model_fields:
        yield from (f"## `{key}`", *components(TrainConfig, key, f"{key}."))


def claims_file() -> Iterator[str]:
    """Yield the parts about a claims file."""
    yield from (LEDGER, "## A claim", table(LedgerClaim))
    for title, kind in {
        "`effect`": ClaimedEffect,
        "`known`": ReportedEvidence,
        "`test` by runs": ArmsTest,
        "`test` by calculation": ArithmeticTest,
    }.items():
        yield from (f"## {title}", described(kind), table(kind))


def recorded_curves() -> Iterator[str]:
    """Yield the parts about the description of recorded curves."""
    yield from (CURVES, table(CurvesFile), "## `arrays`", described(Arrays), table(Arrays, "arrays."))

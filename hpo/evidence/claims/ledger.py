"""Read and check a ledger of claims: build every arm of every claim, and compare it with the first arm."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.config.files import load_base
from hpo.config.validation import error_messages
from hpo.config.yaml import YamlError, parse_yaml
from hpo.errors import Problem
from hpo.evidence.claims.schema import ArmsTest, Ledger, LedgerClaim
from hpo.study.arms import common_alignment
from hpo.study.comparable import incomparable_fields, training_lengths
from model.config import TrainConfig
from model.section import flat, updated

# Arms must differ in more than these fields: all arms have the same seeds, and the other fields do not change losses.
NEUTRAL = {
    "run.seed": 0,
    "run.device": "auto",
    "run.keep_checkpoints": "last",
    "run.diagnostics": False,
    "run.test": False,
}


def load_ledger(path: Path) -> Ledger:
    """Read and check a ledger.

    Raises:
        Problem: the file is not a valid ledger; names all mistakes.
    """
    try:
        tree = parse_yaml(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise Problem(f"{path}: {error}") from None
    try:
        ledger = Ledger.model_validate(tree)
    except ValidationError as error:
        lines = (line.removeprefix("claims.") for line in error_messages(error, Ledger))
        raise Problem(*(f"{path}: {line}" for line in lines)) from None
    if problems := [
        f"{path}: {name}.{line}" for name, claim in ledger.claims.items() for line in _problems(name, claim)
    ]:
        raise Problem(*problems)
    return ledger


def arm_configurations(test: ArmsTest) -> dict[str, TrainConfig]:
    """Return the configuration of each arm. If the arms train on equal tokens, all of them reach every rung exactly.

    Raises:
        pydantic.ValidationError: an arm is not a valid configuration.
        Problem: the base does not exist.
    """
    base = load_base(test.base, "test.base", TrainConfig)
    configs = {name: updated(base, values) for name, values in test.all_arms().items()}
    if test.equal != "tokens":
        return configs
    align = common_alignment(configs.values())
    return {name: updated(config, {"run.align": align}) for name, config in configs.items()}


def _problems(name: str, claim: LedgerClaim) -> list[str]:
    """Return the mistakes in a claim that has the form of one, each as a line that starts with the key."""
    own = [] if claim.report == f"S{name[1:4]}" else [f"report: must be S{name[1:4]}, got {claim.report}"]
    return own + (_arm_problems(claim.test) if isinstance(claim.test, ArmsTest) else [])


def _arm_problems(test: ArmsTest) -> list[str]:
    try:
        base = load_base(test.base, "test.base", TrainConfig)
    except Problem as problem:
        return list(problem.lines)
    problems = []
    for name, values in test.all_arms().items():
        try:
            updated(base, values)
        except ValidationError as error:
            problems += error_messages(error, TrainConfig, f"test.{'arms' if test.arms else 'factors'}.{name}")
    if problems:
        return problems
    configs = arm_configurations(test)
    return _difference(test, configs) + _equality(test, configs) + _measurable(test, configs)


def _difference(test: ArmsTest, configs: Mapping[str, TrainConfig]) -> list[str]:
    """Return the arms that are the same run with the same metric as an earlier arm."""
    seen: dict[str, str] = {}
    problems = []
    for name, config in configs.items():
        same = updated(config, NEUTRAL)
        if not test.metric_of(name).startswith("ema_"):
            same = updated(same, {"regularization.ema": None, "regularization.ema_half_life": None})
        first = seen.setdefault(f"{same.model_dump_json()} {test.metric_of(name)}", name)
        if first != name:
            problems.append(f"test.arms.{name}: must differ from every other arm, is the same as {first}")
    return problems


def _equality(test: ArmsTest, configs: Mapping[str, TrainConfig]) -> list[str]:
    """Return the arms that differ from the first arm in what must be equal, or in their validation data."""
    reference, *others = configs
    problems = []
    for name in others:
        for quantity, own, expected in _compared(test, configs[name], configs[reference]):
            if own != expected:
                problems.append(f"test.arms.{name}: must have the {quantity} of the first arm, {expected}, got {own}")
    return problems


def _compared(test: ArmsTest, config: TrainConfig, reference: TrainConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield each quantity that must be equal, with its values in an arm and in the reference."""
    if lengths := training_lengths(config, reference, test.equal):
        yield test.equal, *lengths
    yield "rungs", config.run.rungs, reference.run.rungs
    fields, expected = flat(config), flat(reference)
    for key, reason in incomparable_fields(config, reference, "val_bpb").items():
        if reason == "data":
            yield key, fields.get(key), expected.get(key)


def _measurable(test: ArmsTest, configs: Mapping[str, TrainConfig]) -> list[str]:
    """Return the arms whose metric cannot be compared, or is not measured."""
    problems = []
    metrics = {name: test.metric_of(name) for name in configs}
    if len({config.tokenizer for config in configs.values()}) > 1 and any(m.endswith("loss") for m in metrics.values()):
        problems.append(
            "test.metric: must be val_bpb, since arms have different tokenizers, whose nats per token cannot be "
            f"compared, got {next(iter(metrics.values()))}"
        )
    if len({metric.removeprefix("ema_") for metric in metrics.values()}) > 1:
        problems.append(
            f"test.metric: must be the same for all arms, except for the prefix ema_, got {', '.join(metrics.values())}"
        )
    for name, config in configs.items():
        if metrics[name].startswith("ema_") and not config.regularization.has_average():
            problems.append(f"test.arms.{name}: must set regularization.ema, since its metric is {metrics[name]}")
        if metrics[name] == "kurtosis" and not config.run.diagnostics:
            problems.append(f"test.arms.{name}: must set run.diagnostics, since its metric is kurtosis")
    rungs = next(iter(configs.values())).run.rungs
    if test.equal == "seconds" and rungs < 4:
        problems.append(
            f"test.equal: seconds needs at least 4 rungs, since curves are interpolated between rungs, got {rungs}"
        )
    return problems

"""A ledger of claims, read and checked: every arm of every claim is built, and compared with the first one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.config.files import load_base
from hpo.config.validation import messages
from hpo.config.yaml import YamlError, parse_yaml
from hpo.errors import Problem
from hpo.evidence.claims.schema import ArmsTest, Claim, Ledger
from hpo.study.arms import common_align
from model.config import TrainConfig
from model.data.corpus_base import TRAINING_FIELDS
from model.section import flat, updated

# What makes no arm: seeds are the protocol's, the others leave losses alone.
NEUTRAL = {"run.seed": 0, "run.device": "auto", "run.keep_checkpoints": "last", "run.diagnostics": False} | {
    "run.test": False
}


def load_ledger(path: Path) -> Ledger:
    """Read and check a ledger.

    Raises:
        Problem: naming everything that is wrong.
    """
    try:
        tree = parse_yaml(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise Problem(f"{path}: {error}") from None
    try:
        ledger = Ledger.model_validate(tree)
    except ValidationError as error:
        lines = (line.removeprefix("claims.") for line in messages(error, Ledger))
        raise Problem(*(f"{path}: {line}" for line in lines)) from None
    if problems := [
        f"{path}: {name}.{line}" for name, claim in ledger.claims.items() for line in _problems(name, claim)
    ]:
        raise Problem(*problems)
    return ledger


def arm_configurations(test: ArmsTest) -> dict[str, TrainConfig]:
    """Return the configuration of each arm; at equal tokens with rungs at marks that all arms reach exactly.

    Raises:
        pydantic.ValidationError: an arm is not a configuration.
        Problem: there is no such base.
    """
    base = load_base(test.base, "test.base", TrainConfig)
    found = {name: updated(base, values) for name, values in test.all_arms().items()}
    if test.equal != "tokens":
        return found
    align = common_align(found.values())
    return {name: updated(config, {"run.align": align}) for name, config in found.items()}


def _problems(name: str, claim: Claim) -> list[str]:
    """Return what is wrong with a claim whose keys are right, each line beginning with the key."""
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
            problems += messages(error, TrainConfig, f"test.{'arms' if test.arms else 'factors'}.{name}")
    if problems:
        return problems
    configs = arm_configurations(test)
    return _difference(test, configs) + _equality(test, configs) + _measurable(test, configs)


def _difference(test: ArmsTest, configs: Mapping[str, TrainConfig]) -> list[str]:
    """Return which arms are the same run, scored the same way."""
    seen: dict[str, str] = {}
    problems = []
    for name, config in configs.items():
        same = updated(config, NEUTRAL)
        if not test.metric_of(name).startswith("ema_"):
            same = updated(same, {"regularization.ema": None})
        first = seen.setdefault(f"{same.model_dump_json()} {test.metric_of(name)}", name)
        if first != name:
            problems.append(f"test.arms.{name}: must differ from every other arm, is the same as {first}")
    return problems


def _equality(test: ArmsTest, configs: Mapping[str, TrainConfig]) -> list[str]:
    """Return where the arms do not get the same of what is to be equal, or are not scored on the same text."""
    first, *others = configs
    problems = []
    for name in others:
        for what, mine, its in _compared(test, configs[name], configs[first]):
            if mine != its:
                problems.append(f"test.arms.{name}: must have the {what} of the first arm, {its}, got {mine}")
    return problems


def _compared(test: ArmsTest, config: TrainConfig, first: TrainConfig) -> Iterator[tuple[str, Any, Any]]:
    one, other = config.marks()[-1], first.marks()[-1]
    if test.equal == "tokens":
        yield "tokens", one * config.update_tokens(), other * first.update_tokens()
    if test.equal == "updates":
        yield "updates", one, other
    yield "rungs", config.run.rungs, first.run.rungs
    kept = [key for key in flat(first) if key.startswith("data.") and key[5:] not in TRAINING_FIELDS]
    for key in kept:
        yield key, flat(config).get(key), flat(first)[key]


def _measurable(test: ArmsTest, configs: Mapping[str, TrainConfig]) -> list[str]:
    """Return where the metric does not fit what is varied or what the arms measure."""
    problems = []
    metrics = {name: test.metric_of(name) for name in configs}
    if len({config.tokenizer for config in configs.values()}) > 1 and any(m.endswith("loss") for m in metrics.values()):
        problems.append(
            "test.metric: must be val_bpb, since the tokenizer is varied and nats per token of different tokens "
            f"cannot be compared, got {next(iter(metrics.values()))}"
        )
    if len({metric.removeprefix("ema_") for metric in metrics.values()}) > 1:
        problems.append(f"test.metric: must be one for all arms, but for ema_, got {', '.join(metrics.values())}")
    for name, config in configs.items():
        if metrics[name].startswith("ema_") and config.regularization.ema is None:
            problems.append(f"test.arms.{name}: must set regularization.ema, since its metric is {metrics[name]}")
        if metrics[name] == "kurtosis" and not config.run.diagnostics:
            problems.append(f"test.arms.{name}: must set run.diagnostics, since its metric is kurtosis")
    if test.equal == "seconds" and next(iter(configs.values())).run.rungs < 4:
        problems.append("test.equal: seconds needs four rungs, between which curves are read")
    return problems

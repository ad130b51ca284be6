"""`hpo ablate`: measure the effect of each change between a baseline and a target configuration, by paired runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.statistics import min_pairs
from hpo.console import Format, print_records, say
from hpo.errors import Problem
from hpo.evidence.comparison import (
    check_same_options,
    conclude_comparison,
    existing_study,
    first_new_seed,
    full_length_base,
    search_study,
)
from hpo.evidence.designs import ALL, DESIGNS, NONE, ArmsAndContrasts, fields_of
from hpo.evidence.effects import effect_table, effect_verdicts, estimate_effects
from hpo.evidence.factors import find_factors, named_configuration, order_factors, with_run_settings_of
from hpo.evidence.length_rule import LengthRule
from hpo.evidence.paired import scope_note
from hpo.evidence.scale_labels import scale_labels
from hpo.launcher.options import LaunchOptions
from hpo.launcher.supervisor import run_study
from hpo.storage.engine import open_readonly
from hpo.study.arithmetic import with_resolved_values
from hpo.study.arms import ArmsPlan, plan_study
from hpo.study.places import at_places
from hpo.study.spec import Study
from hpo.transfer.rule import Rule
from model.section import flat

DEFAULT_SEEDS = 5


@dataclass(frozen=True)
class AblateRequest:
    """The options of `hpo ablate`; None means the default, or the value of the ablation that is continued.

    before, after: the configurations of --from and --to. groups: NAME=FIELD,FIELD of each --factor.
    seeds: runs of each arm. tokens: length of a run. name: of the study of the new runs. rule: by which both
    configurations are carried over to `tokens`.
    """

    study: str | None
    before: str
    after: str
    design: str
    groups: Sequence[str]
    order: Sequence[str]
    seeds: int | None
    tokens: int | None
    name: str | None
    rule: Rule | None = None


def run_ablation(request: AblateRequest, options: LaunchOptions, format: Format) -> int:
    """Run combinations of the changes between two configurations; return the exit status."""
    with open_readonly(options.storage) as store:
        snapshot = read_snapshot(store, request.study)
        name = request.name or f"{snapshot.name}-{request.design}"
        study = existing_study(store, name, "ablates", snapshot)
        if study is None:
            rule = LengthRule(store, snapshot, request.tokens, request.rule)
            study = plan_ablation(snapshot, name, request, first_new_seed(store, snapshot), rule)
        else:
            check_same_options(study, _requested_and_stored(study, request))
    study = at_places(study, options.overrides)
    return run_study(replace(options, study=name), study, partial(conclude_ablation, format=format))


def conclude_ablation(
    snapshot: Snapshot, folder: Path, options: LaunchOptions, seconds: float, format: Format = Format.table
) -> int:
    """Print the effects that an ablation estimates once its runs have ended; return the exit status."""

    def print_result() -> bool:
        with open_readonly(options.storage) as store:
            labels = scale_labels(store, snapshot)
        print_records(effect_table(snapshot, labels), format)
        say("\n".join(["", *effect_verdicts(snapshot), scope_note(snapshot)]))
        return any(effect.n for effect in estimate_effects(snapshot))

    return conclude_comparison(snapshot, seconds, print_result)


def plan_ablation(
    snapshot: Snapshot, name: str, request: AblateRequest, first_seed: int, rule: LengthRule | None = None
) -> Study:
    """Return the study that runs a design over the changes, on consecutive seeds from `first_seed` on.

    rule: carries both configurations over to the length of the new runs; None copies them.

    Raises:
        Problem: the configurations cannot be compared or are the same, or there are too few seeds for an interval.
    """
    search, n = search_study(snapshot), request.seeds or DEFAULT_SEEDS
    if n < (required := min_pairs("t")):
        raise Problem(
            f"--seeds: must be at least {required}, or confidence intervals are too wide to be useful, got {n}"
        )
    before, after = _compared(snapshot, search, request, rule)
    old, new = (with_resolved_values(config, snapshot.arithmetic) for config in (before, after))
    factors = order_factors(find_factors(old, new, request.groups), request.order)
    single: ArmsAndContrasts = (
        {NONE: {}, ALL: fields_of(factors, factors)},
        {f: {ALL: 1.0, NONE: -1.0} for f in factors},
    )
    arms, contrasts = DESIGNS[request.design](factors) if len(factors) > 1 else single
    about: dict[str, Any] = {
        "ablates": snapshot.name,
        "design": request.design,
        "from": request.before,
        "to": request.after,
        "groups": list(request.groups),
        "order": list(request.order),
        "factors": factors,
        "effects": {effect: dict(weights) for effect, weights in contrasts.items()},
    }
    if rule is not None and request.tokens is not None:
        about["rule"] = str(request.rule or Rule.copy)
    compared = ArmsPlan(f"`hpo ablate` of {snapshot.name}", arms, range(first_seed, first_seed + n), about)
    base = with_run_settings_of(full_length_base(search, request.tokens), before)
    return plan_study(search, name, base, compared)


def _compared(
    snapshot: Snapshot, search: Study, request: AblateRequest, rule: LengthRule | None
) -> tuple[BaseModel, BaseModel]:
    """Return the configurations of --from and --to, carried over to the length of the new runs.

    Raises:
        Problem: there is no such configuration, or the rule cannot be applied.
    """
    before = named_configuration(snapshot, search, request.before, "--from")
    after = named_configuration(snapshot, search, request.after, "--to")
    if rule is not None:
        after = rule.carried(f"{request.after} of {snapshot.name}", after)
        before = rule.carried(request.before, before, is_reference=True)
    return before, after


def _requested_and_stored(study: Study, request: AblateRequest) -> dict[str, tuple[Any, Any]]:
    """Return option -> its requested value and the value of the existing ablation."""
    about = study.file.about
    return {
        "--design": (request.design, about["design"]),
        "--from": (request.before, about["from"]),
        "--to": (request.after, about["to"]),
        "--factor": (list(request.groups), about["groups"]),
        "--order": (list(request.order), about["order"]),
        "--seeds": (request.seeds, len(study.file.seeds)),
        "--tokens": (request.tokens, flat(study.base).get("run.tokens")),
        "--rule": (request.rule and str(request.rule), about.get("rule", str(Rule.copy))),
    }

"""Read the results of a study of arms, and what they show in a sequential comparison."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hpo.storage.attributes import ARM, FIXED_VALUES, SEED
from hpo.storage.trials import State, Trial
from hpo.study.sequential import Progress, Results

ENDED = (State.COMPLETE, State.PRUNED, State.FAIL)


def group_by_arm(
    arms: Mapping[str, Mapping[str, Any]], space: Mapping[str, Any], trials: Sequence[Trial]
) -> dict[str, dict[int, Trial]]:
    """Return the started runs of each arm by seed; the last attempt counts for a run that was retried.

    arms, space: of the study file.
    """
    runs: dict[str, dict[int, Trial]] = {name: {} for name in arms}
    seed = next((key for key in ("run.seed", "seed") if key in space), "")
    for trial in trials:
        name, number = trial.user_attrs.get(ARM), trial.user_attrs.get(SEED)
        if name is None and (values := trial.user_attrs.get(FIXED_VALUES)):  # `hpo retry` of a run
            own = {key: value for key, value in values.items() if key != seed}
            name = next((n for n, arm in arms.items() if arm == own), None)
            number = values.get(seed)
        if name in runs and number is not None:
            runs[name][int(number)] = trial
    return runs


def results_of_arms(runs: Mapping[str, Mapping[int, Trial]], seeds: Sequence[int]) -> Results:
    """Return the value of each seed of each arm: NaN for a run without a value, None for a run that has not ended."""
    return {arm: [_value(of_arm.get(seed)) for seed in seeds] for arm, of_arm in runs.items()}


def _value(trial: Trial | None) -> float | None:
    if trial is None or trial.state not in ENDED:
        return None
    finite = trial.state == State.COMPLETE and math.isfinite(trial.values[0])
    return float(trial.values[0]) if finite else math.nan


def look_text(arms: Mapping[str, Progress], n: int) -> str:
    """Return what the pairs so far show, in one line; n: the most pairs."""
    looked = max((len(arm.gains) for arm in arms.values()), default=0)
    return f"after {looked} of at most {n} pairs: " + "; ".join(
        f"{name} {_text(arm, looked)}" for name, arm in arms.items()
    )


def _text(arm: Progress, looked: int) -> str:
    t = f" (t = {arm.t[-1]:.2f}, bound {arm.bound:.2f})" if arm.t and arm.bound is not None else ""
    after = f" after {len(arm.gains)} pairs" if arm.outcome and len(arm.gains) < looked else ""
    state = {"better": "is better", "no gain": "shows no gain", "lost": "loses more runs", None: "is undecided"}
    return f"{state[arm.outcome]}{after}{t}"

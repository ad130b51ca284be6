"""Test one claim of a ledger: by studies that compare its arms, or by a calculation."""

import subprocess
import sys
from pathlib import Path

from hpo.config.files import load_base
from hpo.errors import Problem, WorkFailed
from hpo.evidence.claims.ledger import arm_configurations
from hpo.evidence.claims.results import ClaimResult, stored_test
from hpo.evidence.claims.runner import ClaimRunner, ClaimSkipped, distinct_machines
from hpo.evidence.claims.schema import ArithmeticTest, ArmsTest, LedgerClaim
from hpo.launcher.options import LaunchOptions
from hpo.runs import datasets
from model.config import TrainConfig
from model.nn.shapes import n_parameters
from model.section import flat, updated

ROOT = Path(__file__).parents[3]  # of the project, where its tests are


def run_claim(
    name: str, claim: LedgerClaim, seeds: int, options: LaunchOptions, verdict_arms_only: bool = False
) -> ClaimResult:
    """Test a claim and return its result; runs that the storage already holds are not repeated.

    seeds: number of pairs of runs.
    verdict_arms_only: run only the arms that enter the verdict.

    Raises:
        ClaimSkipped: data or tests that the claim needs are missing on this machine.
        WorkFailed: the runs failed or were interrupted.
    """
    if isinstance(claim.test, ArithmeticTest):
        return run_arithmetic(name, claim, claim.test)
    runner = ClaimRunner(name, claim.test, _checked_base(claim.test), options)
    arms = claim.test.arms_run_first() if verdict_arms_only else list(claim.test.compared_arms())
    tuning, chosen = runner.tune(arms)
    studies = runner.complete_runs(arms, range(seeds), chosen)
    order = {arm: i for i, arm in enumerate(chosen)}
    runs = sorted((run for study in studies for run in study.runs), key=lambda run: (order[run.arm], run.seed))
    all_arms, verdict_arms = claim.test.all_arms(), claim.test.verdict_arms()
    n_seeds = len({run.seed for run in runs if run.arm in verdict_arms})
    return ClaimResult(
        test=stored_test(claim),
        command=f"hpo claims {name} --seeds {n_seeds}",
        base=claim.test.base,
        parameters={arm: count_parameters(updated(runner.base, all_arms[chosen[arm]])) for arm in verdict_arms},
        machines=distinct_machines(study.machines for study in [*tuning, *studies]),
        chosen={arm: level for arm, level in chosen.items() if arm != level},
        runs=tuple(runs),
        tuning=tuple(run for study in tuning for run in study.runs),
    )


def _checked_base(test: ArmsTest) -> TrainConfig:
    """Return the base of a test, with rungs that all its arms reach exactly, however they are split over studies.

    Raises:
        ClaimSkipped: the dataset is missing on this machine.
    """
    base = load_base(test.base, "test.base", TrainConfig)
    try:
        datasets.describe_data(base)
    except Problem as problem:
        raise ClaimSkipped(*problem.lines) from None
    return updated(base, {"run.align": flat(next(iter(arm_configurations(test).values())))["run.align"]})


def run_arithmetic(name: str, claim: LedgerClaim, test: ArithmeticTest) -> ClaimResult:
    """Run the pytest test that a claim names.

    Raises:
        ClaimSkipped: the project's tests, or pytest, are not installed.
        WorkFailed: the pytest test fails.
    """
    if not (ROOT / test.arithmetic.partition("::")[0]).is_file():
        raise ClaimSkipped(f"needs {test.arithmetic} of the project's tests, which are not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.arithmetic]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "No module named pytest" in process.stderr:
        raise ClaimSkipped(f"needs pytest for {test.arithmetic}, which is not installed")
    if process.returncode:
        raise WorkFailed(f"{test.arithmetic} fails; `{' '.join(['python', *command[1:]])}` shows the reason")
    return ClaimResult(test=stored_test(claim), command=f"hpo claims {name}", passed=True)


def count_parameters(config: TrainConfig) -> int:
    """Return the number of parameters that a configuration trains."""
    return n_parameters(config.model, datasets.prepare_data(config).vocab_size)

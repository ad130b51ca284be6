"""hpo claims: the tests of a ledger, run as studies of arms, or as calculations."""

import subprocess
import sys
from pathlib import Path

from hpo.config.files import load_base
from hpo.errors import Problem, WorkFailed
from hpo.evidence.claims.ledger import arm_configurations
from hpo.evidence.claims.results import ClaimResult, stored_test
from hpo.evidence.claims.runner import ClaimRunner, ClaimSkipped, distinct_machines
from hpo.evidence.claims.schema import ArithmeticTest, ArmsTest, Claim
from hpo.launcher.supervisor import LaunchOptions
from hpo.runs.datasets import describe_data as described_data
from hpo.runs.datasets import prepare_data
from model.config import TrainConfig
from model.nn.gpt import build_network
from model.section import flat, updated

ROOT = Path(__file__).parents[3]


def run_claim(
    name: str, claim: Claim, seeds: int, options: LaunchOptions, verdict_arms_only: bool = False
) -> ClaimResult:
    """Test a claim and return what was found; what the storage holds of it already is not run again.

    verdict_arms_only: run only the arms that enter the verdict.

    Raises:
        LeftOut: what it needs is not here. WorkFailed: it could not be done to the end, or was interrupted.
    """
    if isinstance(claim.test, ArithmeticTest):
        return run_arithmetic(name, claim, claim.test)
    case = ClaimRunner(name, claim.test, _checked_base(claim.test), options)
    arms = claim.test.arms_run_first() if verdict_arms_only else list(claim.test.compared_arms())
    tuning, chosen = case.tuned(arms)
    parts = case.done(arms, range(seeds), chosen)
    order = {arm: i for i, arm in enumerate(chosen)}
    made = sorted((run for part in parts for run in part.runs), key=lambda run: (order[run.arm], run.seed))
    full = claim.test.all_arms()
    in_verdict = claim.test.verdict_arms()
    return ClaimResult(
        test=stored_test(claim),
        command=f"hpo claims {name} --seeds {len({run.seed for run in made if run.arm in in_verdict})}",
        base=claim.test.base,
        parameters={arm: count_parameters(updated(case.base, full[chosen[arm]])) for arm in in_verdict},
        machines=distinct_machines(part.machines for part in [*tuning, *parts]),
        chosen={arm: of for arm, of in chosen.items() if arm != of},
        runs=tuple(made),
        tuning=tuple(run for part in tuning for run in part.runs),
    )


def _checked_base(test: ArmsTest) -> TrainConfig:
    """Return the base of a test, once its text is here, with rungs that suit all arms, in whichever studies they are.

    Raises:
        LeftOut: it is not.
    """
    base = load_base(test.base, "test.base", TrainConfig)
    try:
        described_data(base)
    except Problem as problem:
        raise ClaimSkipped(*problem.lines) from None
    return updated(base, {"run.align": flat(next(iter(arm_configurations(test).values())))["run.align"]})


def run_arithmetic(name: str, claim: Claim, test: ArithmeticTest) -> ClaimResult:
    """Run the pytest node that a claim names.

    Raises:
        LeftOut: the project's tests, or pytest, are not here. WorkFailed: the calculation does not come out.
    """
    if not (ROOT / test.arithmetic.partition("::")[0]).is_file():
        raise ClaimSkipped(f"its calculation, {test.arithmetic}, is among the project's tests, which are not installed")
    asked = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.arithmetic]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if "No module named pytest" in done.stderr:
        raise ClaimSkipped(f"its calculation, {test.arithmetic}, needs pytest, which is not installed")
    if done.returncode:
        raise WorkFailed(f"{test.arithmetic} does not pass; `{' '.join(['python', *asked[1:]])}` says why")
    return ClaimResult(test=stored_test(claim), command=f"hpo claims {name}", passed=True)


def count_parameters(config: TrainConfig) -> int:
    """Return how many weights a configuration trains."""
    network = build_network(config.model, prepare_data(config).vocab_size, 0)
    return sum(weights.numel() for weights in network.parameters())

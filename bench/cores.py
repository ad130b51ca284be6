"""Measure two training processes with one thread per core each, when waiting threads spin and when they sleep.

python bench/cores.py
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

SECONDS = 6
ROUNDS = 3

TRAIN = f"""
import time
from model.config import TrainConfig
from model.train.trainer import Trainer
trainer = Trainer([TrainConfig()])
trainer._train(3)
began, updates = time.perf_counter(), 0
while time.perf_counter() - began < {SECONDS}:
    trainer._train(2)
    updates += 2
print(updates * trainer.shared.update_tokens() / (time.perf_counter() - began))
"""


def together(policy: str) -> float:
    """Return the sum of the tokens per second of two concurrent processes."""
    env = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": policy}
    command = [sys.executable, "-c", TRAIN]
    root = Path(__file__).parent.parent
    both = [subprocess.Popen(command, env=env, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return sum(float(process.communicate()[0]) for process in both)


def main() -> None:
    """Print both rates and their ratio."""
    rates: dict[str, list[float]] = {"ACTIVE": [], "PASSIVE": []}
    for _ in range(ROUNDS):
        for policy, values in rates.items():
            values.append(together(policy))
    for policy, values in rates.items():
        median = statistics.median(values)
        print(f"OMP_WAIT_POLICY={policy:8} {median:10,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f})")
    ratios = [passive / active for passive, active in zip(rates["PASSIVE"], rates["ACTIVE"], strict=True)]
    print(f"sleeping / spinning {statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f}, n = {ROUNDS})")


if __name__ == "__main__":
    main()

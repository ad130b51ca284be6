"""Train 36 runs with cool-down probes, and keep their curves for bench/probe_replay.py.

HPO_DATA=FOLDER python bench/probe_runs.py [--results FOLDER] [--updates 20000]

The network is the base `microgpt` (4,192 parameters, names of names.txt), six learning rates by six schedules. The runs
of one learning rate are a pack. Each pack is a file in bench/results/probes/UPDATES, which is written when it ends. A
second call trains only the packs that are missing. Without names.txt in HPO_DATA, nothing is trained.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hpo.config.files import read_config
from model.config import TrainConfig
from model.section import updated
from model.train.trainer import Trainer

BENCH = Path(__file__).parent
RESULTS = BENCH / "results" / "probes"
BASE = BENCH.parent / "studies" / "bases" / "microgpt.yaml"
RUNGS = 20
PROBED = (1, 2, 5, 8, 10, 15)  # rungs
SHARES = (0.02, 0.05, 0.1)  # of the run, for each probe
LRS = (1e-3, 2.5e-3, 6.3e-3, 1.6e-2, 4e-2, 1e-1)
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"name": "constant"},
    "linear": {"name": "linear", "floor": 0.01},
    "cosine": {"name": "cosine", "floor": 0.01},
    "exponential": {"name": "exponential", "floor": 0.01},
    "wsd-20": {"name": "wsd", "decay": 0.2, "floor": 0.01},
    "wsd-50": {"name": "wsd", "decay": 0.5, "floor": 0.01},
}


def main() -> int:
    """Train the packs that are missing; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--updates", type=int, default=20_000, help="length of a run")
    options = parser.parse_args()
    if not (Path(os.environ.get("HPO_DATA", ".")) / "names.txt").is_file():
        print("note: HPO_DATA has no names.txt, so no runs are trained; the kept results remain")
        return 0
    folder: Path = options.results / str(options.updates)
    folder.mkdir(parents=True, exist_ok=True)
    for lr in LRS:
        path = folder / f"lr-{lr:g}.json"
        if not path.exists():
            start = time.process_time()
            content = {"updates": options.updates, "rungs": RUNGS, "runs": train_pack(lr, options.updates)}
            part = path.with_suffix(".part")
            part.write_text(json.dumps(content, indent=1) + "\n")
            part.replace(path)
            print(f"{path}: {time.process_time() - start:.0f} s of CPU time", flush=True)
    return 0


def train_pack(lr: float, updates: int) -> list[dict[str, Any]]:
    """Train a run of each schedule with one learning rate; return their curves and probes."""
    configs = [run_config(lr, schedule, updates) for schedule in SCHEDULES.values()]
    runs: list[dict[str, Any]] = [{"lr": lr, "schedule": name, "raw": {}, "probes": {}} for name in SCHEDULES]
    trainer = Trainer(configs)
    for _, reports in trainer:
        for lane, metrics in reports.items():
            runs[lane]["raw"][metrics.rung] = finite(metrics.val_loss)
        at_rung = [lane for lane, m in reports.items() if m.rung in PROBED and math.isfinite(m.val_loss)]
        for share in SHARES if at_rung else ():
            for lane, probe in trainer.probe(dict.fromkeys(at_rung, share)).items():
                values = runs[lane]["probes"].setdefault(f"{share:g}", {})
                values[reports[lane].rung] = finite(probe["probe_val_loss"])
    return runs


def run_config(lr: float, schedule: dict[str, Any], updates: int) -> TrainConfig:
    """Return the configuration of a run."""
    base = TrainConfig.model_validate(read_config(BASE)[0])
    tokens = updates * base.update_tokens()
    length = {"run.tokens": tokens, "run.rungs": RUNGS, "run.device": "cpu", "run.precision": "fp32"}
    values = {f"schedule.{key}": value for key, value in schedule.items()}
    return updated(base, {**length, "optimizer.lr": lr, **values})


def finite(value: float) -> float | None:
    """Return a number that JSON can hold, None if the run has diverged."""
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())

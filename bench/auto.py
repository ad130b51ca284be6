"""Compare `run.compile: auto` with the better of on and off over a whole study, in seconds of `hpo launch`.

    python bench/auto.py [--trials 24] [--rounds 3] [--tokens 100_000] [--sizes micro,default]

Each study has one worker, random configurations of one shape and no pruner, so that all settings do the same work. The
cache folder is new. The first study with auto compiles; the others find the code on disk, and take turns. Above 1, auto
is faster than the better of the two settings.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = """
base:
  tokenizer: {{name: {tokenizer}}}
  model: {{n_layer: {layers}, n_embd: {width}, context: {context}}}
  run: {{tokens: {tokens}, rungs: 4, batch_size: {batch}}}
space:
  optimizer.lr: {{low: 1e-3, high: 1e-2, log: true}}
  optimizer.beta2: {{low: 0.9, high: 0.999, complement_log: true}}
sampler: random
pruner: none
probe: "off"
"""
SIZES = {
    "micro": {"tokenizer": "bytes", "layers": 1, "width": 16, "context": 16, "batch": 4},
    "default": {"tokenizer": "bpe", "layers": 2, "width": 96, "context": 64, "batch": 8},
    "4x256": {"tokenizer": "bpe", "layers": 4, "width": 256, "context": 64, "batch": 8},
}
SETTINGS = ("off", "on", "auto")


def launch(setting: str, number: int, trials: int) -> float:
    """Run a study in a storage of its own; return the seconds that it took."""
    place = ["--storage", f"sqlite:///{setting}-{number}.db", "--out", f"runs-{setting}-{number}"]
    options = ["--trials", str(trials), "--workers", "1", "--seed", "0", "--plain", "--set", f"run.compile={setting}"]
    began = time.perf_counter()
    command = [sys.executable, "-m", "hpo", "launch", "--study", "auto.yaml", *options, *place]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - began


def compare(values: dict[str, object], trials: int, rounds: int, tokens: int) -> None:
    """Run the studies of one size in a new folder and print their times and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["HPO_CACHE"] = str(Path(folder, "cache"))
        Path("auto.yaml").write_text(STUDY.format(tokens=tokens, **values))
        launch("off", -1, 1)  # prepares the data
        cold = launch("auto", -1, trials)
        launch("on", -1, 1)  # compiles, where auto has not
        taken = {s: [0.0] * rounds for s in SETTINGS}
        for n in range(rounds):
            for i in range(len(SETTINGS)):
                setting = SETTINGS[(n + i) % len(SETTINGS)]
                taken[setting][n] = launch(setting, n, trials)
        os.chdir("/")
    for setting, seconds in taken.items():
        print(f"  {setting}: {_spread(seconds)} s")
    ratios = [min(off, on) / auto for off, on, auto in zip(*taken.values(), strict=True)]
    print(f"  better / auto: {_spread(ratios)}")
    print(f"  auto with an empty cache: {cold - statistics.median(taken['auto']):+.1f} s", flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Compare all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--sizes", default=",".join(SIZES))
    arguments = parser.parse_args()
    for name in arguments.sizes.split(","):
        print(f"{name}: {arguments.trials} trials of {arguments.tokens:,} tokens", flush=True)
        compare(SIZES[name], arguments.trials, arguments.rounds, arguments.tokens)


if __name__ == "__main__":
    main()

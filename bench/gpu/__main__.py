"""Run the tests that need a GPU and measure the trainer on it, in less than eight minutes.

    python -m bench.gpu [--device cuda] [--minutes 7.4] [--parts card,tests] [--out bench/results/gpu]
    python -m bench.gpu --device cpu --tiny

Each part runs in a process of its own with a time limit, so a part that fails or hangs loses no other result. The
results are written to a JSON file after each part. The last lines are a short table.
"""

import argparse
import datetime
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu.plan import PARTS, Part, stages
from bench.gpu.process import Running, start_method
from bench.gpu.records import Settings
from bench.gpu.table import markdown, summary
from model.cache import atomic_write

ROOT = Path(__file__).resolve().parents[2]
SHORTEST = 5.0  # seconds below which no part starts


def run_parts(parts: list[Part], settings: Settings, minutes: float, out: Path) -> dict[str, Any]:
    """Run the parts, write the results after each, and return them."""
    until = time.monotonic() + 60 * minutes
    result: dict[str, Any] = {"device": settings.device, "tiny": settings.tiny, "minutes": minutes, "parts": []}
    result["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    began, context = time.monotonic(), start_method(settings.device)
    result["start method"] = context.get_start_method()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for stage in stages(parts):
            if until - time.monotonic() < SHORTEST:
                result["parts"] += [{"part": p.name, "status": "no time left", "records": []} for p in stage]
                continue
            for running in [Running(part, settings, Path(folder), until, context) for part in stage]:
                row = running.wait()
                result["parts"].append(row)
                print(f"{row['part']}: {row['status']}, {row['seconds']} s", flush=True)
            result["seconds"] = round(time.monotonic() - began, 1)
            write(result, out)
    return result


def write(result: dict[str, Any], out: Path) -> Path:
    """Write the results to a file that is named by card, date and time."""
    card = next((r["row"]["card"] for p in result["parts"] for r in p["records"] if r["table"] == "Card"), "unknown")
    slug = re.sub(r"[^a-z0-9]+", "-", f"{card} {result['date'][:16]}".lower().replace(":", ""))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{slug}.json"
    with atomic_write(path) as part:
        part.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return path


def main() -> int:
    """Run everything; return 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that the script works")
    parser.add_argument("--minutes", type=float, default=7.4, help="no part runs longer than this after the start")
    parser.add_argument("--parts", default="", help="names of parts, separated by commas; default: all")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.parts.split(",") if name.strip()]
    if unknown := [name for name in names if name not in {part.name for part in PARTS}]:
        parser.error(f"--parts: no part {unknown[0]!r}; the parts are {', '.join(part.name for part in PARTS)}")
    settings = Settings(arguments.device, arguments.tiny)
    out = arguments.out or ROOT / ("bench/results/gpu" if arguments.device == "cuda" else ".gpu/results")
    os.environ.setdefault("HPO_CACHE", str(ROOT / ".gpu/cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".gpu/inductor"))
    os.environ["PYTHONPATH"] = str(ROOT)
    result = run_parts([part for part in PARTS if not names or part.name in names], settings, arguments.minutes, out)
    print(f"\n{markdown(result)}\n{summary(result)}\n{write(result, out)}")
    return int(any(part["status"] in ("failed", "stopped at its time limit") for part in result["parts"]))


if __name__ == "__main__":
    sys.exit(main())

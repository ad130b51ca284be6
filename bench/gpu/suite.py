"""The tests that need a GPU, and on a CPU their twins, in a process of pytest."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from bench.gpu.records import Emit, Settings

ROOT = Path(__file__).resolve().parents[2]
FULL_SIZE = ("tests/model/nn/test_full_size.py",)  # needs most of the memory of a card


def marked_files() -> list[str]:
    """Return the files with tests that need a GPU, without those that need most of its memory."""
    paths = [path for path in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    return [name for path in paths if (name := str(path.relative_to(ROOT))) not in FULL_SIZE]


def measure(settings: Settings, emit: Emit, files: Sequence[str] = (), processes: int = 0) -> None:
    """Run the tests that need a GPU and emit their number and each failure.

    files: of these tests, all but FULL_SIZE by default. processes: of pytest-xdist, 0: none.
    """
    on_gpu = ["-m", "gpu", *(files or marked_files()), "-n", str(processes)]
    select = on_gpu if settings.device == "cuda" else ["tests/gpu/test_training.py", "-k", "resumed"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Warnings are no errors here: which ones a GPU causes was not known when the tests were written.
        options = ["-q", "-W", "default", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *select]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr[-2000:], flush=True)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        summarize(report, emit)


def summarize(report: Path, emit: Emit) -> None:
    """Emit the counts of a JUnit report, and the message of each test that failed."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    outcomes = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for case in cases:
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped = case.find("skipped") is not None
        outcomes["failed" if problem is not None else "skipped" if skipped else "passed"] += 1
        if problem is not None:
            message = (problem.get("message") or problem.text or "").replace("\n", " ")
            failures.append((case.get("name"), message[:400]))
    seconds = sum(float(case.get("time", 0)) for case in cases)
    emit("Tests", **outcomes, seconds=round(seconds, 1))
    for name, message in failures:
        emit("Failed tests", test=name, message=message)

"""Print an HTML page to PDF with Chromium."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from hpo.errors import Problem, WorkFailed
from hpo.runs.run_dir import copy_file

CHROMIUM = "HPO_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_S = 180

# Chromium loads only the page: no first-run pages, no updates, no DNS queries.
FLAGS = ["--headless", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"]
FLAGS += ["--disable-dev-shm-usage", "--no-pdf-header-footer"]
FLAGS += ["--virtual-time-budget=60000"]  # milliseconds of page time, in which the scripts draw all figures


def browser() -> str:
    """Return the path of Chromium.

    Raises:
        Problem: $HPO_CHROMIUM is set but is no program that can be run.
        WorkFailed: Chromium is not installed.
    """
    if named := os.environ.get(CHROMIUM):
        if path := shutil.which(named):
            return path
        raise Problem(f"{CHROMIUM}: must be the path of Chromium, got {named}")
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise WorkFailed(
        "--pdf: needs Chromium, which is not installed; install the Debian package chromium, or set "
        f"{CHROMIUM} to its path; --html does not need it"
    )


def write_pdf(page: str, path: Path) -> None:
    """Print an HTML page to a PDF file, which is written completely or not at all.

    Raises:
        WorkFailed: Chromium is not installed, or it failed.
        Unwritable: the file cannot be written.
    """
    chromium = browser()
    with tempfile.TemporaryDirectory(prefix="hpo-report-") as folder:
        source, target = Path(folder, "report.html"), Path(folder, "report.pdf")
        source.write_text(page, "utf-8")
        # Chromium does not start in its sandbox as root. The page is ours, and its policy blocks everything else.
        flags = [*FLAGS, f"--user-data-dir={folder}/profile", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        command = [chromium, *flags, f"--print-to-pdf={target}", source.as_uri()]
        env = os.environ | {"HOME": folder}  # Chromium writes its settings here
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, env=env)
        except subprocess.TimeoutExpired:
            raise WorkFailed(f"--pdf: {chromium} did not finish within {TIMEOUT_S} s") from None
        except OSError as error:
            raise WorkFailed(f"--pdf: {chromium} cannot be run: {error.strerror or error}") from None
        if not target.is_file() or not target.stat().st_size:
            errors = [line for line in done.stderr.splitlines() if line.strip()]
            cause = errors[-1] if errors else f"exit status {done.returncode}"
            raise WorkFailed(f"--pdf: {chromium} wrote no file: {cause}")
        copy_file(target, path)

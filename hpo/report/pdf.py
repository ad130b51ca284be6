"""A page as PDF, printed by a Chromium of this machine."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from hpo.errors import Problem, WorkFailed
from hpo.runs.run_dir import copy_file

CHROMIUM = "HPO_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 180

# Nothing but the page: no first-run pages, no update, no look-up of any host.
FLAGS = ["--headless", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"]
FLAGS += [
    "--disable-dev-shm-usage",
    "--no-pdf-header-footer",
    "--virtual-time-budget=60000",
]  # of its own clock: until all figures are drawn


def browser() -> str:
    """Return the Chromium of this machine.

    Raises:
        Problem: $HPO_CHROMIUM names none. WorkFailed: there is none.
    """
    if named := os.environ.get(CHROMIUM):
        if found := shutil.which(named):
            return found
        raise Problem(f"{CHROMIUM}: must be a Chromium that can be run, got {named}")
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise WorkFailed(
        "--pdf: needs Chromium to print the page, and there is none on this machine; install the Debian package "
        f"chromium, or set {CHROMIUM} to one; --html needs none"
    )


def write_pdf(page: str, path: Path) -> None:
    """Print a page, whole or not at all.

    Raises:
        WorkFailed: there is no Chromium, or it failed.
    """
    chromium = browser()
    with tempfile.TemporaryDirectory(prefix="hpo-report-") as folder:
        source, target = Path(folder, "report.html"), Path(folder, "report.pdf")
        source.write_text(page, "utf-8")
        # As root it refuses to start in its sandbox; the page is our own and its policy lets nothing in.
        flags = [*FLAGS, f"--user-data-dir={folder}/profile", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        asked = [chromium, *flags, f"--print-to-pdf={target}", source.as_uri()]
        env = os.environ | {"HOME": folder}  # a place for what it remembers
        try:
            done = subprocess.run(asked, capture_output=True, text=True, errors="replace", timeout=SECONDS, env=env)
        except subprocess.TimeoutExpired:
            raise WorkFailed(f"--pdf: {chromium} did not end within {SECONDS} s") from None
        except OSError as error:
            raise WorkFailed(f"--pdf: {chromium} cannot be run: {error.strerror or error}") from None
        if not target.is_file() or not target.stat().st_size:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise WorkFailed(f"--pdf: {chromium} made none: {said[-1] if said else f'status {done.returncode}'}")
        copy_file(target, path)

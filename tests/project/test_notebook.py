"""The notebook of the documentation runs from top to bottom, and its stop button stops a launch in good order."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.notebook_page import PAGE
from tests.support.command import ROOT, trivial, until, worker_processes
from tests.support.fork_server import SERVER

# The test's process may have no certificates and no Jupyter configuration; its warnings are about those.
pytestmark = pytest.mark.filterwarnings("ignore")
# Workers start as those of other tests do.
PREPARE = "from tests.support.fork_server import use_fork_server\nuse_fork_server()"


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))


def outputs(cell: Any) -> str:
    """Return the outputs of a cell as text."""
    texts = (o.get("text") or "".join(str(v) for v in o.get("data", {}).values()) for o in cell.outputs)
    return "\n".join(texts)


def test_notebook_of_the_documentation_runs(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    import nbformat  # here, because each process of a test run imports this module
    from nbclient import NotebookClient

    book = nbformat.read(ROOT / "docs" / "notebook.ipynb", 4)
    nbformat.validate(book)
    if os.environ.get(SERVER):
        book.cells.insert(0, nbformat.v4.new_code_cell(PREPARE))
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code" and cell.source != PREPARE]
    shown = {next(line for line in cell.source.splitlines() if "study" in line): cell for cell in cells[1:]}
    launch = shown["study.launch(workers=2)"]
    # One output holds the progress, drawn again and again; the study follows.
    progress, study = (o for o in launch.outputs if o.output_type != "stream")
    assert "12/12 trials" in progress.data["text/html"]
    assert "trial 11: " in progress.data["text/html"]
    assert "<svg" in study.data["text/html"]
    assert "12 of 12 trials ended" in study.data["text/plain"]
    assert not [o for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    # The page quotes the first trials, which do not depend on the order of the workers.
    baseline = re.findall(r"\(baseline ([\d.]+)\)", PAGE.read_text("utf-8"))
    assert f"(baseline {baseline[0]})" in outputs(shown["status = study.status()"])
    assert "better: paired difference" in outputs(shown["confirmation = study.confirm(workers=2, top=1, seeds=5)"])
    assert "<a href=" in outputs(shown["study.report()"])
    assert "14 of 14 trials ended" in outputs(shown['study = hpo.Study.load("momentum")'])
    assert "seeds: must be a whole number of at least 1, got 0" in outputs(cells[-1])
    assert (folder / "best.yaml").is_file()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Any]:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_stop_button_lets_the_workers_finish_their_rung(kernel: Any, tmp_path: Path) -> None:
    manager, client = kernel
    trivial(tmp_path)
    module = tmp_path / "trivial.py"
    module.write_text(
        module.read_text().replace("    for rung in 1, 2, 3:", "    import time\n    for rung in 1, 2, 3:")
    )
    module.write_text(module.read_text().replace("        yield", "        time.sleep(1)\n        yield"))
    if os.environ.get(SERVER):
        client.execute_interactive(PREPARE, timeout=60, output_hook=lambda _: None)
    message = client.execute("import hpo\nstudy = hpo.Study.create('trivial.yaml')\nstudy.launch(workers=1)")
    reported = tmp_path / "runs/trivial/trials/0000/metrics.jsonl"
    assert until(lambda: reported.is_file() and reported.read_text())
    manager.interrupt_kernel()
    started = time.monotonic()
    reply = client.get_shell_msg(timeout=60)
    while reply["parent_header"]["msg_id"] != message:
        reply = client.get_shell_msg(timeout=60)
    assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "KeyboardInterrupt")
    assert time.monotonic() - started < 30
    assert worker_processes(tmp_path) == []
    # Nothing is lost: the interrupted trial waits, and the next launch resumes it.
    code = "study.launch(workers=1, quiet=True, trials=2).status()['trials']"
    asked = {"n": code, "left": "[t for t in study.status()['trials'].items() if t[0] in ('failed', 'running')]"}
    before = client.execute_interactive("", user_expressions={"left": asked["left"]}, timeout=60, output_hook=print)
    assert before["content"]["user_expressions"]["left"]["data"]["text/plain"] == "[('failed', 0), ('running', 0)]"
    module.write_text(module.read_text().replace("time.sleep(1)", "time.sleep(0)"))
    after = client.execute_interactive("", user_expressions={"n": code}, timeout=60, output_hook=print)
    counts = after["content"]["user_expressions"]["n"]["data"]["text/plain"]
    assert "'failed': 0" in counts
    assert "'waiting': 0" in counts

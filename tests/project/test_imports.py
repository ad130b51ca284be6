import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for package in ("hpo", "model") for file in sorted((ROOT / package).rglob("*.py"))}


def statements(tree: ast.AST, inside_functions: bool) -> Iterator[ast.AST]:
    """Yield every node, or only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if inside_functions or not (for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield node
            yield from statements(node, inside_functions)


def imports(module: str, inside_functions: bool = True) -> set[str]:
    """Return the dotted names that a module imports; `from a import b` gives both a and a.b."""
    found = set()
    for node in statements(ast.parse(MODULES[module].read_text()), inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            assert node.module
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "model"])
def test_the_training_knows_nothing_of_the_search(module: str) -> None:
    assert not roots(module) & {"optuna", "hpo"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "hpo"])
def test_the_search_does_not_import_torch(module: str) -> None:
    assert "torch" not in roots(module)


@pytest.mark.parametrize("package", ["hpo", "model"])
def test_imports_make_no_circle(package: str) -> None:
    inside = {name for name in MODULES if name.startswith(f"{package}.")}
    graph = {name: imports(name, inside_functions=False) & inside - {name} for name in inside}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # a circle is a CycleError that names it
    assert set(order) == inside


def test_the_storage_and_the_configuration_load_quickly() -> None:
    program = """
import sys
import hpo.storage.store, hpo.queue.slots
assert "model" not in sys.modules, "model"
import model.config
assert "torch" not in sys.modules, "torch"
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

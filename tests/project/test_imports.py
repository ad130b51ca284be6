"""Which package may import which: the table of docs/design.md, held for every import, inside functions too."""

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from hpo.config.yaml import parse_yaml

ROOT = Path(__file__).parents[2]

# What every package of hpo may import beside its own row of the table.
EVERYWHERE = {"hpo.errors", "hpo.config", "hpo.optuna_internals", "model.section", "model.config"}
TABLE = {name: set(row["imports"]) for name, row in parse_yaml((ROOT / "docs/packages.yaml").read_text()).items()}
TABLE |= {"hpo": {"hpo.api", "hpo.errors", "hpo.trial"}, "model": set()}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for root in ("hpo", "model") for file in sorted((ROOT / root).rglob("*.py"))}


def package_of(module: str) -> str:
    """Return the row of the table that a module belongs to."""
    if module.startswith("hpo.evidence.claims"):
        return "hpo.evidence.claims"
    return ".".join(module.split(".")[:2])


def imports(module: str) -> set[str]:
    """Return the dotted names that a module imports anywhere; `from a import b` is a.b where that is a module."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            assert node.module
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= members & MODULES.keys() or {node.module}
    return names


def allowed(package: str) -> set[str]:
    return TABLE[package] | {package} | (EVERYWHERE if package.startswith("hpo.") else set())


def arrows(module: str) -> set[str]:
    """Return the modules of this project that a module imports."""
    return {name for name in imports(module) if name in MODULES and name != module}


@pytest.mark.parametrize("module", MODULES)
def test_a_package_imports_only_what_the_table_allows(module: str) -> None:
    names = allowed(package_of(module))
    assert {target for target in arrows(module) if not {target, package_of(target)} & names} == set()


def test_the_table_has_every_package_and_no_circle() -> None:
    assert {package_of(module) for module in MODULES} == TABLE.keys()
    below = {"hpo.errors", "hpo.config", "hpo.optuna_internals", "hpo"}  # packages that stand below all others of hpo
    rows = {
        package: {package_of(name) for name in (TABLE[package] if package in below else allowed(package))} - {package}
        for package in TABLE
    }
    assert set(graphlib.TopologicalSorter(rows).static_order()) == TABLE.keys()


def test_imports_make_no_circle_not_even_inside_functions() -> None:
    graph = {module: arrows(module) for module in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # a circle is a CycleError that names it
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_training_knows_nothing_of_the_search_and_the_search_imports_no_torch(module: str) -> None:
    forbidden = {"optuna", "hpo"} if module.startswith("model") else {"torch"}
    assert not {name.split(".")[0] for name in imports(module)} & forbidden


def test_importing_hpo_loads_only_the_standard_library_and_neither_does_the_client_of_a_script() -> None:
    program = """
import sys
before = {name.split(".")[0] for name in sys.modules}
import hpo
hpo.current_trial().report(1, loss=2.0)
loaded = {name.split(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
assert loaded == {"hpo"}, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module", [name for name, file in MODULES.items() if file.name == "__init__.py" and name != "hpo"]
)
def test_init_files_hold_no_code(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    assert [node for node in tree.body if not isinstance(getattr(node, "value", None), ast.Constant)] == []


def test_the_storage_and_the_configuration_load_quickly() -> None:
    program = """
import sys
import hpo.storage.store, hpo.queue.slots
loaded = {name for name in sys.modules if name.startswith("model.")}
assert loaded <= {"model.cache", "model.errors"}, loaded
import model.config
assert "torch" not in sys.modules, "torch"
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def public_names(module: str) -> list[str]:
    body = ast.parse(MODULES[module].read_text("utf-8")).body
    named = (node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))
    return [name for name in named if not name.startswith("_")]


def test_few_public_names_of_the_search_are_defined_in_two_files() -> None:
    files = defaultdict(set)
    for module in MODULES:
        for name in public_names(module) if module.startswith("hpo") else ():
            files[name].add(module)
    twice = {name: sorted(modules) for name, modules in files.items() if len(modules) > 1}
    assert len(twice) < 0.05 * len(files), twice

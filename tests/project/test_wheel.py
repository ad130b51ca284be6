"""The installed wheel works from any folder, without the repository."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.command import ROOT

SCRIPT = """command: ['{python}', train.py, '{{x}}']
metric: {{pattern: 'step (?P<step>\\d+): loss (?P<loss>\\S+)'}}
steps: {{rungs: 1, last: 1}}
space: {{x: {{low: 0.0, high: 1.0}}}}
objective: loss
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy, so that nothing is left in the repository."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("hpo", "model", "studies"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (built,) = folder.glob("hpo-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed") / "packages"
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_holds_both_packages_and_every_study(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    studies = {f"hpo/{path.relative_to(ROOT)}" for path in (ROOT / "studies").rglob("*.yaml")}
    modules = {str(path.relative_to(ROOT)) for name in ("hpo", "model") for path in (ROOT / name).glob("**/*.py")}
    assert studies
    assert studies | modules <= names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"hpo", "model"}


def test_installed_wheel_searches_a_script_from_another_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import sys\nprint('step 1: loss', float(sys.argv[1]) ** 2)\n")
    (tmp_path / "script.yaml").write_text(SCRIPT.format(python=sys.executable))
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    def hpo(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpo", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(ROOT) not in (done.stdout + done.stderr).replace(sys.prefix, "")
        return done

    where = "import hpo, model; print(hpo.__file__, model.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.split() == [str(installed / name / "__init__.py") for name in ("hpo", "model")]

    source = hpo("check", "beta2_sweep").stdout.split(": ")[0]
    assert Path(source) == installed / "hpo" / "studies" / "beta2_sweep.yaml"
    assert hpo("check", "claims").stdout.startswith(f"{installed}/hpo/studies/claims.yaml: ok; ")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert hpo("--version").stdout == f"hpo {version}\n"
    hpo("launch", "--study", "script.yaml", "--trials", "1")
    assert hpo("studies", "--format", "csv").stdout.splitlines()[1].startswith("script,1,0,0,0,0,")
    assert "git_commit: null" in (tmp_path / "runs/script/best.yaml").read_text()

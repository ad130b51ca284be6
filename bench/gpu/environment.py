"""Create .gpu/venv, in which `make gpu` runs, without a network and without pip.

    python3 bench/gpu/environment.py

The environment sees the packages of the interpreter that runs this script, among them torch. It adds the wheels in
.gpu/wheels and the source tree. `python3 -m venv --system-site-packages` alone is not enough: if the interpreter
itself belongs to a virtual environment, a new one sees the packages of the base interpreter instead. The script uses
only the standard library.
"""

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".gpu"
CHECK = """
import importlib.util, sys
names = "torch numpy optuna sqlalchemy alembic psycopg tokenizers pandas plotly pydantic ruamel.yaml typer rich".split()
names += "safetensors scipy statsmodels cmaes optuna_dashboard tqdm pytest xdist".split()
missing = [name for name in names if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"missing: {', '.join(missing)}; run `make gpu-wheels` where there is a network")
import pydantic, sqlalchemy, torch
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA available: {torch.cuda.is_available()}")
"""


def package_folders() -> list[str]:
    """Return the folders from which this interpreter imports packages, without the standard library."""
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    folders = []
    for entry in sys.path[1:]:  # the first one is the folder of this script
        path = Path(entry)
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        if path.is_dir() and (installed or not any(path.resolve().is_relative_to(own) for own in standard)):
            folders.append(str(path))
    return folders


def create(folder: Path, wheels: list[Path]) -> Path:
    """Create the environment and return its interpreter."""
    venv.create(folder, system_site_packages=True, clear=True, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    # Packages of a wheel come first on sys.path, so they replace other versions on the machine.
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    (packages / "machine.pth").write_text("\n".join([str(ROOT), *package_folders()]) + "\n")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    metadata = packages / f"hpo-{version}.dist-info"  # importlib.metadata reads the version there
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hpo\nVersion: {version}\n")
    return folder / "bin" / "python"


def main() -> int:
    """Create the environment and check that everything imports."""
    wheels = sorted((FOLDER / "wheels").glob("*.whl"))
    python = create(FOLDER / "venv", wheels)
    print(f"{len(wheels)} wheels from {FOLDER.name}/wheels", flush=True)
    return subprocess.run([python, "-c", CHECK], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

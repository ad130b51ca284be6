"""What several test modules share: a private cache folder, storages of both kinds, races between processes."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Two test processes share two cores; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from _pytest.assertion import rewrite

from hpo.storage.store import Store, open_store
from tests.support.cases import FIRST, RACES, TOGETHER, on_other_storage
from tests.support.fork_server import SERVER, ForkServer, use_fork_server
from tests.support.postgres import MISSING, TEMPLATE, Postgres, binaries
from tests.support.race import Race
from tests.support.tables import TABLES, copy_tables


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run every case, on both storages")


def pytest_configure(config: pytest.Config) -> None:
    """Start the fork server, which the processes of pytest-xdist share."""
    use_fork_server()
    copy_tables()
    if sys.platform == "linux" and not hasattr(config, "workerinput") and not config.getoption("--exhaustive"):
        config.add_cleanup(ForkServer().close)
        rewrite_assertions(config)  # while the server imports


def rewrite_assertions(config: pytest.Config) -> None:
    """Let pytest rewrite the assertions of all tests once, before every process of pytest-xdist does so."""
    state = config.stash[rewrite.assertstate_key]
    for path in () if sys.dont_write_bytecode else Path(__file__).parent.rglob("test_*.py"):
        pyc = rewrite.get_cache_dir(path) / f"{path.stem}{rewrite.PYC_TAIL}"
        if rewrite._read_pyc(path, pyc) is None and rewrite.try_makedirs(pyc.parent):
            stat, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(state, code, stat, pyc)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the markers of groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep some files in one process, start the longest first, and leave out what only `make exhaustive` runs.

    A test that is named with its case on the command line always runs.
    """
    for item in items:
        if "race" in getattr(item, "fixturenames", ()) or item.nodeid.startswith(RACES):
            item.add_marker(pytest.mark.xdist_group("race"))
        elif item.nodeid.startswith(TOGETHER):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    if config.getoption("--exhaustive") or any("[" in argument for argument in config.args):
        return
    left_out = {item for item in items if item.get_closest_marker("exhaustive") or on_other_storage(item)}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Exclude the tests and modules that live until the end from garbage collection, a tenth of the time otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Path]:
    """Keep prepared data out of the user's own cache, in one folder for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "hpo-cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPO_CACHE", str(folder))
        patch.setenv(TEMPLATE, str(folder / "postgres"))
        if not pytestconfig.getoption("--exhaustive"):
            patch.setenv(TABLES, str(folder / "tables.db"))
        patch.delenv("HPO_STORAGE", raising=False)
        patch.delenv("OPTUNA_STORAGE", raising=False)
        yield folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the test's own as the current one, without modules of other tests' folders."""
    forget_modules()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget_modules()


def forget_modules() -> None:
    """Have the modules that tests write into their folders imported anew."""
    for name in ("curves", "trivial", "sweep"):  # tests/support/planted.py, command.py; tests/project/test_docs.py
        sys.modules.pop(name, None)


@pytest.fixture
def new_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every command of the test in a new interpreter, as a child of the process that starts it."""
    monkeypatch.delenv(SERVER, raising=False)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server whose database `with_tables` is a template that has all tables."""
    if not binaries():
        pytest.skip(MISSING)
    server = Postgres()
    try:
        server.start()
        server.sql("CREATE DATABASE with_tables")
        open_store(server.url("with_tables"), create=True).close()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[Postgres]:
    """A running server that other processes reach by TCP."""
    if not binaries():
        pytest.skip(MISSING)
    server = Postgres(tcp=True)
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A storage without studies, for connect(storage_url, create=True)."""
    yield from _fresh(request, tmp_path, "with_tables")


@pytest.fixture
def store(storage_url: str) -> Iterator[Store]:
    """An open storage without studies."""
    with open_store(storage_url, create=True) as store:
        yield store


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A storage without tables."""
    yield from _fresh(request, tmp_path, "template1")


def _fresh(request: pytest.FixtureRequest, tmp_path: Path, template: str) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/hpo.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = server.database(template)
    yield server.url(name)
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def race() -> Iterator[Race]:
    """Eight processes; race(function, *args) runs function(i, *args) in all of them simultaneously."""
    processes = Race()
    yield processes
    processes.close()

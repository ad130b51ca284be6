import json
from pathlib import Path

import pytest

from model.memory import capacity
from model.memory.capacity import MIN_ESTIMATE, calibrated, free_main_memory, record_measurement

GB = 10**9
NO_LIMIT = 9_223_372_036_854_771_712  # what version 1 has for none


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def machine(root: Path, free: int, groups: str) -> None:
    """Write what Linux says of a machine with so much free memory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {free // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)


def group(folder: Path, limit: int | str, used: int, cached: int, version: int = 2) -> None:
    """Write what Linux says of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\n")


def test_without_groups_what_is_available_can_be_had(tmp_path):
    machine(tmp_path, 8 * 1024**3, "")
    assert free_main_memory(tmp_path) == 8 * 1024**3


def test_a_group_leaves_its_limit_less_what_it_holds(tmp_path):
    machine(tmp_path, 64 * GB, "0::/jobs/mine\n")
    group(tmp_path / "sys/fs/cgroup/jobs/mine", 4 * GB, used=2 * GB, cached=GB)
    assert free_main_memory(tmp_path) == 3 * GB


def test_the_groups_around_ours_have_limits_too(tmp_path):
    machine(tmp_path, 64 * GB, "0::/jobs/mine\n")
    group(tmp_path / "sys/fs/cgroup/jobs/mine", "max", used=GB, cached=0)
    group(tmp_path / "sys/fs/cgroup/jobs", 3 * GB, used=GB, cached=0)
    assert free_main_memory(tmp_path) == 2 * GB


def test_in_a_container_the_groups_that_it_cannot_see_are_left_out(tmp_path):
    machine(tmp_path, 64 * GB, "0::/../../host/job\n")
    group(tmp_path / "sys/fs/cgroup", 5 * GB, used=GB, cached=0)
    assert free_main_memory(tmp_path) == 4 * GB


@pytest.mark.parametrize(("limit", "left"), [(NO_LIMIT, 8 * 1024**3), (6 * GB, 5 * GB)])
def test_groups_of_version_1_count(tmp_path, limit, left):
    machine(tmp_path, 8 * 1024**3, "9:cpu:/a\n4:memory:/a\n")
    group(tmp_path / "sys/fs/cgroup/memory/a", limit, used=GB, cached=0, version=1)
    assert free_main_memory(tmp_path) == left


def test_this_machine_has_memory():
    assert 10**8 < capacity.free_memory("cpu") < 10**15


def test_an_estimate_is_corrected_by_the_median_measurement(cache):
    assert calibrated(1000, "cpu") == 1000
    for factor in (1.2, 50.0, 1.1):
        record_measurement(MIN_ESTIMATE, round(factor * MIN_ESTIMATE), "cpu")
    assert calibrated(1000, "cpu") == 1200


def test_old_measurements_are_forgotten(cache):
    for factor in [3] * 5 + [2] * 9:
        record_measurement(MIN_ESTIMATE, factor * MIN_ESTIMATE, "cpu")
    (seen,) = json.loads((cache / "memory.json").read_text()).values()
    assert seen == [2] * 9


def test_small_runs_teach_nothing(cache):
    record_measurement(MIN_ESTIMATE - 1, 10 * MIN_ESTIMATE, "cpu")
    assert calibrated(1000, "cpu") == 1000
    assert not cache.exists()


@pytest.mark.parametrize("text", ["", "[1, 2]", "{"])
def test_a_damaged_file_is_begun_anew(cache, text):
    cache.mkdir()
    (cache / "memory.json").write_text(text)
    record_measurement(MIN_ESTIMATE, 2 * MIN_ESTIMATE, "cpu")
    assert calibrated(1000, "cpu") == 2000


def test_a_cache_that_cannot_be_written_is_done_without(cache):
    cache.write_text("a file, no folder")
    record_measurement(MIN_ESTIMATE, 2 * MIN_ESTIMATE, "cpu")
    assert calibrated(1000, "cpu") == 1000

"""The search for the largest batch size needs few trial runs, also where the estimates are wrong."""

import pytest

from hpo.commands.batch_search import MAX_TRIAL_RUNS, BatchSearch, largest_that_fits
from model.memory.capacity import MIN_ESTIMATE
from tests.support.tiny import tiny


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, without earlier measurements."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))


def planted(room: int, cap: int, a_sequence: int) -> BatchSearch:
    """Return a search with known estimates: `a_sequence` bytes for each sequence."""
    search = BatchSearch(tiny(), 257, 1, "cpu", room, cap)
    search.estimates = {batch: a_sequence * batch for batch in range(1, cap + 1)}
    return search


@pytest.mark.parametrize("cap", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 31, 64, 99, 1000])
@pytest.mark.parametrize("needs", [lambda n: n, lambda n: 30 + n // 8, lambda n: n**2, lambda n: n**0.5], ids=range(4))
def test_the_search_finds_what_counting_finds(cap, limit, needs):
    wanted = max([1, *(n for n in range(1, cap + 1) if needs(n) <= limit)])
    assert largest_that_fits(needs, limit, cap) == wanted


@pytest.mark.parametrize("limit", [100, 1000, 4000])
def test_memory_that_is_linear_takes_few_estimates(limit):
    asked = []
    assert largest_that_fits(lambda n: asked.append(n) or 50 + n, limit, 5000) == limit - 50
    assert len(set(asked)) <= 4 + limit.bit_length()


@pytest.mark.parametrize("a_sequence", [1000, MIN_ESTIMATE])  # without and with corrections by measurements
@pytest.mark.parametrize("off", [0.3, 0.7, 1.0, 1.1, 1.5, 4.0])
@pytest.mark.parametrize("cap", [1, 2, 100, 5000])
def test_the_limit_is_found_however_far_off_the_estimate(cache, cap, off, a_sequence):
    search = planted(80 * a_sequence, cap, a_sequence)
    while (batch := search.next()) is not None:
        assert search.best < batch < search.worst
        needed = round(off * a_sequence * batch)
        search.add(batch, {"peak_bytes": needed} if needed <= search.room else {"out_of_memory": "no more"})
    true = min(cap, int(80 / off))
    assert len(search.results) <= MAX_TRIAL_RUNS
    assert search.best <= true < search.worst
    assert search.best >= 0.9 * true - 1


def test_what_ran_in_too_much_does_not_fit(cache):
    search = planted(100, 50, 10)
    search.add(5, {"peak_bytes": 101, "tokens_per_second": 1.0})
    assert (search.best, search.worst) == (0, 5)
    (tried,) = [row for row in search.table() if row["batch_size"] == 5]
    assert not tried["fits"]

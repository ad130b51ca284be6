import timeit

import numpy as np
import pytest

from model.data.batches import SequenceDataset, TrainingBatches
from model.data.corpus import Lines
from model.data.prepare import prepare
from model.data.prepared import Split
from model.data.tokenizer import Bytes
from model.errors import ConfigError

LAYOUTS = ["stream", "documents"]


@pytest.fixture
def split(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    lines = [f"{i} " + "x" * (i % 23) for i in range(300)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    return prepare(Lines(path=str(tmp_path / "a.txt")), Bytes()).splits["train"]


def plain(layout="stream"):
    """Return a corpus with the default order of training."""
    return Lines(path="unread", layout=layout)


def numbered(n_targets):
    """Return a split whose token at position p is p, so that a row shows where it was cut."""
    starts = np.array([0, n_targets])
    return Split("train", np.arange(n_targets + 1, dtype=np.uint32), starts, n_targets, 1, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("context", [1, 2, 7, 8, 64, 1000])
def test_rows_hold_every_target_once_whatever_the_context(split, layout, context):
    windows = SequenceDataset(split, layout, context)
    x, y = windows.gather(np.arange(len(windows)))
    assert x.shape == y.shape == (len(windows), context)
    assert x.dtype == y.dtype == np.int64
    # The unmasked targets of all rows in order are the stream itself.
    np.testing.assert_array_equal(y[y >= 0], split.tokens[1:])
    np.testing.assert_array_equal(x[y >= 0], split.tokens[:-1])
    assert not x[y < 0].any()
    assert set(y[y < 0]) <= {-1}


def test_a_document_begins_a_row_and_a_long_one_continues_in_the_next(split):
    windows = SequenceDataset(split, "documents", 8)
    x, y = windows.gather(np.arange(len(windows)))
    begins = x[:, 0] == 0
    assert begins.sum() == split.n_documents
    for row in np.flatnonzero(~begins):
        assert x[row, 0] == y[row - 1, -1]
    assert not (x[:, 1:][y[:, 1:] >= 0] == 0).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_size_does_not_change_the_order(split, layout):
    order = TrainingBatches(split, plain(layout), 16, seed=3)
    for first in (0, order.n_rows(0) - 5, 2 * order.n_rows(0) - 16):
        whole = order.batch(first, 16)
        parts = [TrainingBatches(split, plain(layout), 16, seed=3).batch(first + 4 * i, 4) for i in range(4)]
        for k in (0, 1):
            np.testing.assert_array_equal(whole[k], np.concatenate([part[k] for part in parts]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_epoch_has_every_row_once_in_another_order(split, layout):
    order = TrainingBatches(split, plain(layout), 16, seed=0)
    epochs = [order._epoch(epoch) for epoch in (0, 1)]
    for _, starts, lengths in epochs:
        rows = np.sort(starts)
        assert len(set(rows.tolist())) == order.n_rows(0)
        if layout == "stream":
            assert set(np.diff(rows).tolist()) == {16}
            assert rows[-1] + 16 <= split.n_targets
        else:
            assert lengths.sum() == split.n_targets
    assert (epochs[0].first != epochs[1].first).any()


def test_every_epoch_of_documents_has_every_target_once(split):
    order = TrainingBatches(split, plain("documents"), 8, seed=0)
    for epoch in range(3):
        _, y = order.batch(epoch * order.n_rows(0), order.n_rows(0))
        np.testing.assert_array_equal(np.sort(y[y >= 0]), np.sort(split.tokens[1:]))


def test_stream_epochs_shift_their_windows_within_the_split_and_mask_nothing():
    order = TrainingBatches(numbered(1000), plain(), 64, seed=0)
    shifts = set()
    for epoch in range(200):
        x, y = order.batch(epoch * order.n_rows(0), order.n_rows(0))
        np.testing.assert_array_equal(y, x + 1)
        shifts.add(int(x.min()))
    assert (min(shifts), len(shifts) > 40, max(shifts)) == (0, True, 63)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_targets_are_those_not_masked(split, layout):
    order = TrainingBatches(split, plain(layout), 16, seed=0)
    for first in (0, 7, order.n_rows(0) - 3):
        assert order.n_targets(first, 10) == (order.batch(first, 10)[1] >= 0).sum()


def test_seeds_give_other_orders_and_equal_seeds_the_same(split):
    batches = [TrainingBatches(split, plain(), 16, seed).batch(0, 8)[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert (batches[0] != batches[2]).any()


@pytest.mark.parametrize("n_targets", [64, 65, 100, 127, 128, 129])
def test_a_split_of_one_context_or_two_still_trains(n_targets):
    order = TrainingBatches(numbered(n_targets), plain(), 64, seed=0)
    x, y = order.batch(0, 100)
    np.testing.assert_array_equal(y, x + 1)
    assert y.max() <= n_targets


def test_a_batch_may_be_many_epochs_long():
    x, _ = TrainingBatches(numbered(64), plain(), 64, seed=0).batch(0, 5000)
    assert x.shape == (5000, 64)


def test_a_stream_shorter_than_the_context_is_refused():
    with pytest.raises(ConfigError) as caught:
        TrainingBatches(numbered(37), plain(), 64, seed=0)
    assert str(caught.value) == (
        "model.context: training split has 37 tokens, fewer than one context of 64; use a shorter context or more text"
    )
    assert len(SequenceDataset(numbered(37), "documents", 64)) == 1


def test_a_batch_takes_microseconds(split):
    order = TrainingBatches(split, plain(), 64, seed=0)
    order.batch(0, 8)
    assert min(timeit.repeat(lambda: order.batch(1, 8), number=100, repeat=5)) / 100 < 100e-6

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from model.data.batches import TrainingBatches
from model.data.corpus import Lines
from model.data.epochs import DocumentSampler
from model.data.ngrams import unigram_probabilities
from model.data.prepared import Split
from model.errors import ConfigError

OWN = [
    {"drop_documents": 0.3},
    {"shuffle_documents": True},
    {"curriculum": "short"},
    {"curriculum": "easy"},
    {"drop_documents": 0.3, "shuffle_documents": True, "curriculum": "short"},
    {"layout": "documents", "drop_documents": 0.3},
    {"layout": "documents", "curriculum": "easy"},
    {"layout": "documents", "drop_documents": 0.3, "curriculum": "short"},
]
STREAMS = [fields for fields in OWN if "layout" not in fields]


def how(**fields):
    return Lines(path="unread", **fields)


def split_of(documents):
    """Return a split of these lists of ids."""
    starts = np.cumsum([0, *(len(d) + 1 for d in documents)])
    tokens = np.array([0, *(i for d in documents for i in (*d, 0))], np.uint16)
    return Split("train", tokens, starts, int(starts[-1]), len(documents), 0)


@pytest.fixture(scope="module")
def split():
    """Return a split of 300 documents. The first token of a document is its number + 1000."""
    rng = np.random.default_rng(0)
    return split_of([[1000 + i, *rng.zipf(1.5, rng.integers(1, 39)).clip(1, 250)] for i in range(300)])


def seen(tokens):
    """Return the numbers of the documents of a stream in their order."""
    return [int(t) - 1000 for t in tokens if t >= 1000]


def all_of(order, epoch):
    """Return the rows of an epoch."""
    begin = sum(order.n_rows(e) for e in range(epoch))
    return order.batch(begin, order.n_rows(epoch))


@pytest.mark.parametrize(
    ("layout", "seed", "expected"),
    [
        ("stream", 0, "85d4c833fcb6c076"),
        ("stream", 3, "4b9c0984e9e35349"),
        ("documents", 0, "358c75eacfe2b29d"),
        ("documents", 3, "6c9cec10ccfb6088"),
    ],
)
def test_the_plain_order_never_changes(layout, seed, expected):
    """Compare with hashes that were recorded before other orders existed."""
    starts = np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(2, 40, 300))])
    tokens = (np.arange(starts[-1] + 1) * 7919 % 250 + 1).astype(np.uint16)
    tokens[starts] = 0
    order = TrainingBatches(Split("train", tokens, starts, 0, 300, 0), how(layout=layout), 16, seed)
    found = hashlib.sha256()
    for first, count in ((0, 50), (395, 7), (1000, 900), (12345, 64)):
        for array in order.batch(first, count):
            found.update(array.tobytes())
        found.update(str(order.n_targets(first, count)).encode())
    assert found.hexdigest()[:16] == expected


@pytest.mark.parametrize("fields", OWN, ids=str)
def test_a_batch_is_the_same_whatever_its_size_and_wherever_training_continued(split, fields):
    order = TrainingBatches(split, how(**fields), 16, seed=3)
    x, y = order.batch(0, 3000)  # several epochs
    for first in (0, 350, 1501, 2980):
        later = TrainingBatches(split, how(**fields), 16, seed=3)
        for at in range(first, first + 20, 4):
            for whole, part in zip((x, y), later.batch(at, 4), strict=True):
                np.testing.assert_array_equal(whole[at : at + 4], part)
    # An earlier batch again, as after a rollback.
    np.testing.assert_array_equal(order.batch(5, 7)[0], x[5:12])
    assert (TrainingBatches(split, how(**fields), 16, seed=4).batch(1000, 300)[0] != x[1000:1300]).any()


@pytest.mark.parametrize("fields", OWN, ids=str)
def test_targets_are_those_that_the_batch_does_not_mask(split, fields):
    order = TrainingBatches(split, how(**fields), 16, seed=0)
    for first in (0, 7, order.n_rows(0) - 3, 2000):
        assert order.n_targets(first, 10) == (order.batch(first, 10)[1] >= 0).sum()


@pytest.mark.parametrize("fields", STREAMS, ids=str)
def test_a_stream_is_the_whole_documents_of_its_epoch_and_nothing_is_masked(split, fields):
    data = how(**fields)
    order, documents = TrainingBatches(split, data, 16, seed=1), DocumentSampler(split, data, seed=1)
    for epoch in range(3):
        stream = documents.stream(epoch)
        slow = [0]
        for i in documents.documents(epoch):
            slow += [*split.tokens[split.starts[i] + 1 : split.starts[i + 1]], 0]
        assert stream.tolist() == slow
        assert stream.dtype == split.tokens.dtype
        x, y = all_of(order, epoch)
        begins = order._epoch(epoch).first
        assert order.n_rows(epoch) == len(begins) == (len(slow) - 16) // 16
        assert sorted(np.diff(np.sort(begins))) == [16] * (len(begins) - 1)
        for row, first in enumerate(begins):
            assert x[row].tolist() == slow[first : first + 16]
            assert y[row].tolist() == slow[first + 1 : first + 17]


@pytest.mark.parametrize("layout", ["stream", "documents"])
def test_each_epoch_leaves_out_other_documents_and_the_share_asked_for(split, layout):
    data = how(layout=layout, drop_documents=0.3)
    order, documents = TrainingBatches(split, data, 16, seed=0), DocumentSampler(split, data, seed=0)
    kept = [set(documents.documents(epoch).tolist()) for epoch in range(20)]
    assert {len(k) for k in kept} == {210}
    assert len({frozenset(k) for k in kept}) == 20
    assert set().union(*kept) == set(range(300))
    assert len({order.n_rows(epoch) for epoch in range(20)}) > 1
    for epoch in range(3):
        x, y = all_of(order, epoch)
        found = set(seen(x.flatten())) | set(seen(y.flatten()))
        assert found <= kept[epoch]
        if layout == "documents":  # every target of the selected documents once
            assert found == kept[epoch]
            assert (y >= 0).sum() == sum(np.diff(split.starts)[i] for i in kept[epoch])
        else:  # all but the targets that fill no window
            assert len(found) > 200


def test_dropped_documents_are_drawn_evenly(split):
    documents = DocumentSampler(split, how(drop_documents=0.5), seed=0)
    kept = np.bincount(np.concatenate([documents.documents(epoch) for epoch in range(400)]), minlength=300)
    # The standard deviation of 400 fair coin flips is 10.
    assert (kept.min() > 155, kept.max() < 245, kept.mean()) == (True, True, 200)


def test_a_small_share_drops_one_document_and_one_that_leaves_none_is_refused():
    few = split_of([[1] * 40, [2] * 40, [3] * 40])
    assert len(DocumentSampler(few, how(drop_documents=0.01), 0).documents(0)) == 2
    with pytest.raises(ConfigError) as caught:
        TrainingBatches(few, how(drop_documents=0.9), 16, 0)
    assert str(caught.value) == "data.drop_documents: must leave one of the 3 training documents, got 0.9"


def test_an_epoch_that_could_be_shorter_than_the_context_is_refused_before_training():
    few = split_of([[1] * 5, [2] * 90, [3] * 90])
    with pytest.raises(ConfigError) as caught:
        TrainingBatches(few, how(drop_documents=0.67), 64, 0)
    assert str(caught.value) == (
        "data.drop_documents: may leave 6 tokens of an epoch, fewer than one context of 64, got 0.67; "
        "drop fewer documents, use a shorter context or more text"
    )
    for epoch in range(9):
        all_of(TrainingBatches(few, how(drop_documents=0.34), 64, 0), epoch)


def test_shuffled_documents_are_all_there_in_another_order_each_epoch(split):
    documents = DocumentSampler(split, how(shuffle_documents=True), seed=0)
    orders = [seen(documents.stream(epoch)) for epoch in range(4)]
    assert all(sorted(order) == list(range(300)) for order in orders)
    assert len({tuple(order) for order in orders} | {tuple(range(300))}) == 5
    assert seen(DocumentSampler(split, how(shuffle_documents=True), seed=1).stream(0)) != orders[0]


def test_documents_keep_their_order_unless_they_are_to_be_shuffled(split):
    for fields, epoch in (({"drop_documents": 0.3}, 0), ({"curriculum": "easy"}, 1), ({}, 0)):
        found = seen(DocumentSampler(split, how(**fields), seed=0).stream(epoch))
        assert found == sorted(found)


def costs(split, kind):
    """Return the score by which a curriculum sorts, for each document, computed the slow way."""
    documents = [split.tokens[a + 1 : b + 1].tolist() for a, b in pairwise(split.starts)]
    if kind == "short":
        return [len(d) for d in documents]
    p = unigram_probabilities(split.tokens.astype(np.int64), 2000)
    return [-np.log([p[t] for t in d]).mean().round(9) for d in documents]


@pytest.mark.parametrize("kind", ["short", "easy"])
def test_the_first_epoch_of_a_curriculum_ascends_and_the_next_does_not(split, kind):
    cost = costs(split, kind)
    expected = sorted(range(300), key=lambda i: cost[i])  # stable: equal documents stay in order of their number
    order = TrainingBatches(split, how(curriculum=kind), 16, seed=0)
    x, _ = all_of(order, 0)
    begin = order._epoch(0).first[0]
    assert begin < 16
    whole = [t for i in expected for t in split.tokens[split.starts[i] : split.starts[i + 1]]]
    assert x.flatten().tolist() == whole[begin : begin + x.size]
    later = seen(all_of(order, 1)[0].flatten())
    assert sorted(later) != later != [i for i in expected if i in later]


@pytest.mark.parametrize("kind", ["short", "easy"])
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_rows_of_documents_ascend_in_the_first_epoch(split, kind, drop):
    cost = costs(split, kind)
    order = TrainingBatches(split, how(layout="documents", curriculum=kind, drop_documents=drop), 8, seed=0)
    found = seen(all_of(order, 0)[0].flatten())
    assert found == sorted(found, key=lambda i: (cost[i], i))
    assert len(found) == round(300 * (1 - drop))
    later = seen(all_of(order, 1)[0].flatten())
    assert later != sorted(later, key=lambda i: (cost[i], i))


def test_easy_goes_by_the_words_of_real_documents():
    documents = [[2, 2, 2], [1] * 6]
    real, more = split_of(documents), split_of([*documents, *[[2, 2, 2]] * 50])
    more = Split("train", more.tokens, more.starts, more.text_bytes, 52, 0, n_synthetic=50)
    found = [DocumentSampler(s, how(curriculum="easy"), 0).documents(0).tolist() for s in (real, more)]
    assert [i for i in found[1] if i < 2] == found[0] == [1, 0]


def test_a_far_epoch_is_found_without_building_those_before(split, monkeypatch):
    order = TrainingBatches(split, how(drop_documents=0.3), 16, seed=0)
    built = []
    stream = DocumentSampler.stream
    monkeypatch.setattr(DocumentSampler, "stream", lambda self, epoch: built.append(epoch) or stream(self, epoch))
    far = sum(order.n_rows(epoch) for epoch in range(200))
    order.batch(far, 4)
    order.batch(far + 4, 4)
    assert built == [200]
    assert len(order._epoch_starts) == 202

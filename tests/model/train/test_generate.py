from itertools import islice

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from model.data.tokenizer import END
from model.errors import ConfigError
from model.nn.gpt import Network
from model.nn.init import initial_weights
from model.train.checkpoint import CheckpointError
from model.train.generate import Sampling, TrainedRun, generate, generate_tokens, load_run, sample_token
from model.train.trainer import Trainer
from tests.support.tiny import UPDATE, text, tiny


def trained(folder, values=None, updates=100):
    config = tiny({"run.tokens": updates * UPDATE, "run.rungs": 1, "optimizer.lr": 1e-2} | (values or {}))
    trainer = Trainer([config])
    for _ in trainer:
        trainer.save(0, folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


def test_equal_seeds_write_equal_text(run):
    first = generate(run, "a", tokens=40, seed=3)
    assert generate(run, "a", tokens=40, seed=3) == first
    assert generate(run, "a", tokens=40, seed=4) != first
    assert len(first.encode()) >= 30


def test_the_weights_are_those_of_the_checkpoint(run):
    trainer = Trainer([tiny({"run.tokens": 100 * UPDATE, "run.rungs": 1, "optimizer.lr": 1e-2})])
    trainer.resume(0, run)
    _, network, _ = load_run(run)
    x = torch.randint(257, (2, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), trainer.pack.network(trainer.pack.leaves, x[None]).view(*x.shape, -1))


def test_temperature_zero_takes_the_most_likely_token(run):
    _, network, vocabulary = load_run(run)
    ids = [END, *vocabulary.encode_batch(["so"])[0]]
    for _ in range(30):
        ids.append(int(network(torch.tensor([ids[-16:]]))[0, -1].argmax()))
    for seed in (0, 1):
        assert generate(run, "so", tokens=30, temperature=0, seed=seed) == vocabulary.decode(ids[3:])


def test_among_one_token_the_choice_is_greedy(run):
    greedy = generate(run, "so", tokens=30, temperature=0)
    assert generate(run, "so", tokens=30, temperature=2.0, top_k=1, seed=9) == greedy


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.5), Sampling(2.0), Sampling(1.5, top_k=5)], ids=str)
def test_tokens_are_drawn_by_their_probabilities(run, sampling):
    _, network, _ = load_run(run)
    logits = network(torch.tensor([[END]]))[0, -1].detach()
    if sampling.top_k:
        logits = logits.where(logits >= logits.sort().values[-sampling.top_k], -torch.inf)
    wanted = (logits / sampling.temperature).softmax(0).double().numpy()
    generator = torch.Generator().manual_seed(0)
    n = 5_000
    counts = np.bincount([sample_token(logits, sampling, generator) for _ in range(n)], minlength=257)
    assert chi2_p(counts, wanted) > 1e-4


def test_the_first_token_of_many_seeds_follows_the_probabilities(run):
    _, network, _ = load_run(run)
    wanted = network(torch.tensor([[END]]))[0, -1].detach().softmax(0).double().numpy()
    first = [next(generate_tokens(network, [END], Sampling(seed=seed))) for seed in range(800)]
    assert chi2_p(np.bincount(first, minlength=257), wanted) > 1e-4


def chi2_p(counts, probabilities):
    """Return the p-value of the counts. Tokens with an expected count below five form one class."""
    expected = probabilities / probabilities.sum() * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] == 0:
        assert observed[-1] == 0
        observed, expected = observed[:-1], expected[:-1]
    return chisquare(observed, expected).pvalue


def test_ties_let_no_more_than_k_through():
    generator = torch.Generator().manual_seed(0)
    assert {sample_token(torch.zeros(50), Sampling(top_k=3), generator) for _ in range(500)} == {0, 1, 2}
    assert sample_token(torch.zeros(5), Sampling(top_k=99), generator) in range(5)


def test_a_temperature_near_zero_is_greedy_and_finite():
    logits = torch.tensor([0.0, 3.0, 2.9])
    assert sample_token(logits, Sampling(1e-30), torch.Generator().manual_seed(0)) == 1


def test_the_context_slides():
    shape = tiny({"model.init_std": 0.5}).model  # large weights, so that every token of the context matters
    network = TrainedRun(Network(shape, 257), initial_weights(shape, 257, 0))
    ids = [END, *range(1, 10)]
    found = list(islice(generate_tokens(network, ids, Sampling(0.0)), 40))
    for token in found:
        assert token == int(network(torch.tensor([ids[-16:]]))[0, -1].argmax())
        ids = [*ids, token]
    assert len(set(found)) > 10


def test_a_run_on_documents_stops_at_the_end_of_one(tmp_path):
    values = {"data.name": "lines", "data.layout": "documents", "model.context": 64, "run.batch_size": 8}
    folder = trained(tmp_path, values | {"run.tokens": 60 * 8 * 64})
    _, network, vocabulary = load_run(folder)
    stopped = 0
    for seed in range(5):
        ids = list(islice(generate_tokens(network, [END], Sampling(seed=seed)), 100))
        document = ids[: ids.index(END)] if END in ids else ids
        assert generate(folder, tokens=100, seed=seed) == vocabulary.decode(document)
        stopped += len(document) < 100
    assert stopped


def test_a_run_on_a_stream_continues_past_the_end_token(run):
    _, network, vocabulary = load_run(run)
    for seed in range(20):
        ids = list(islice(generate_tokens(network, [END], Sampling(5.0, seed=seed)), 150))
        if END in ids[:100]:
            assert generate(run, tokens=150, temperature=5.0, seed=seed) == vocabulary.decode(ids)
            return
    raise AssertionError("no seed drew an end token")


def test_characters_of_many_bytes_come_whole(run):
    _, network, vocabulary = load_run(run)
    assert vocabulary.decode(vocabulary.encode_batch(["né"])[0]) == "né"
    drawn = list(islice(generate_tokens(network, [END], Sampling(0.8)), 300))
    assert "é" in vocabulary.decode(drawn)
    assert vocabulary.decode(drawn) == generate(run, tokens=300, temperature=0.8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature: must be a number of at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature: .* got nan"),
        ({"temperature": float("inf")}, "temperature: .* got inf"),
        ({"top_k": 0}, "top_k: must be at least 1, got 0"),
        ({"tokens": 0}, "tokens: must be at least 1, got 0"),
    ],
    ids=str,
)
def test_numbers_that_mean_nothing_are_refused(run, values, message):
    with pytest.raises(ConfigError, match=message):
        generate(run, **values)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*state\.safetensors"):
        generate(tmp_path)


def test_a_checkpoint_whose_text_has_changed_is_refused(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(text(1), "utf-8")
    folder = trained(tmp_path / "run", {"data.path": str(path)}, updates=1)
    path.write_text(text(2), "utf-8")
    with pytest.raises(CheckpointError, match="data has changed"):
        generate(folder)

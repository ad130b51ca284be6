import itertools
import math

import pytest
import torch
from scipy import stats

from model.nn.dropout import dropout, random_bits, random_normal, replace_tokens

N = 2**15
KEYS = [0, 1, 2, -1, 77, 78, 12345, -(2**31), 2**31 - 1, 1 << 16]
SITES = [0, 1, 2, 3, 4, 5, 47, 48, 65_536, 65_537, 65_538, 65_539, 131_072, 131_073]
STREAMS = [(key, 1) for key in KEYS] + [(12345, site) for site in SITES if site != 1]


def mask(p: float, key: int, site: int, n: int = N) -> torch.Tensor:
    """Return 1.0 where an element is kept."""
    found = dropout(torch.ones(n), torch.tensor([p]), torch.tensor([key], dtype=torch.int32), site)
    return (found != 0).double()


def standardised(p: float, key: int, site: int) -> torch.Tensor:
    return (mask(p, key, site) - (1 - p)) / math.sqrt(p * (1 - p))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("key", "site"), STREAMS)
def test_a_mask_keeps_its_share(p, key, site):
    error = math.sqrt(p * (1 - p) / N)
    assert float(mask(p, key, site).mean()) == pytest.approx(1 - p, abs=5 * error)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_no_mask_is_like_another_however_they_are_shifted(p):
    # Circular cross-correlation at every lag: 253 pairs of streams and 32,768 lags, so that the largest of
    # 8.3 million normal deviates is near 5.3 by chance alone.
    spectra = [torch.fft.rfft(standardised(p, *stream)) for stream in STREAMS]
    for (a, x), (b, y) in itertools.combinations(zip(STREAMS, spectra, strict=True), 2):
        deviates = torch.fft.irfft(x * y.conj(), N) / math.sqrt(N)
        assert float(deviates.abs().max()) < 6.5, (a, b)


@pytest.mark.parametrize(("key", "site"), STREAMS)
def test_elements_of_a_mask_are_uncorrelated_at_every_distance(key, site):
    spectrum = torch.fft.rfft(standardised(0.1, key, site))
    deviates = torch.fft.irfft(spectrum.abs() ** 2, N)[1:] / math.sqrt(N)
    assert float(deviates.abs().max()) < 6.5


def test_patterns_of_neighbouring_elements_are_equally_frequent():
    for key, site in STREAMS:
        kept = mask(0.5, key, site).view(-1, 4).long()
        counts = torch.bincount(kept @ torch.tensor([8, 4, 2, 1]), minlength=16).double()
        chi2 = float(((counts - N / 64) ** 2 / (N / 64)).sum())
        assert chi2 < 50  # 15 degrees of freedom: p < 2e-5


def test_the_numbers_are_uniform():
    for key, site in STREAMS:
        found = random_bits(N, torch.tensor([key], dtype=torch.int32), site)[0]
        cells = torch.bincount((found.long() + 2**31) >> 24, minlength=256).double()
        chi2 = float(((cells - N / 256) ** 2 / (N / 256)).sum())
        assert chi2 < 255 + 5 * math.sqrt(2 * 255)
        assert len(found.unique()) > N * (1 - 1e-4)


def test_no_two_neighbouring_keys_and_sites_give_equal_masks():
    sites = [*range(40), *range(65_536, 65_540), *range(131_072, 131_088)]
    masks = {mask(0.5, key, site, 64).numpy().tobytes() for key in range(-20, 20) for site in sites}
    assert len(masks) == 40 * 60


def test_probability_zero_keeps_every_bit():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropout(x, torch.tensor([0.0]), torch.tensor([5], dtype=torch.int32), 1), x)


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
    found = dropout(torch.ones(N), torch.tensor([0.2]), torch.tensor([5], dtype=torch.int32), 1)
    assert found.unique().tolist() == [0.0, 1.25]
    assert float(found.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(0.25 / N))


def test_the_mask_depends_on_the_place_of_an_element_and_not_on_the_shape():
    x, p, key = torch.arange(1.0, 121.0), torch.tensor([0.4]), torch.tensor([-9], dtype=torch.int32)
    flat = dropout(x, p, key, 2)
    for shape in ((4, 30), (2, 3, 20), (2, 3, 4, 5)):
        assert torch.equal(dropout(x.view(shape), p, key, 2).flatten(), flat)
    assert torch.equal(dropout(x[:50], p, key, 2), flat[:50])


@pytest.mark.parametrize(("key", "site"), [(12345, 65_537), (0, 131_072), (-(2**31), 131_073)])
def test_normal_numbers_have_the_distribution_that_they_claim(key, site):
    found = random_normal(2**20, torch.tensor([key], dtype=torch.int32), site)[0].double()
    assert stats.kstest(found[:N].numpy(), "norm").pvalue > 1e-4
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert float((found**power).mean()) == pytest.approx(moment, abs=5 * math.sqrt(spread) / 2**10)
    assert 4.5 < float(found.abs().max()) < 5.5
    deviates = torch.fft.irfft(torch.fft.rfft(found[:N]).abs() ** 2, N)[1:] / math.sqrt(N)
    assert float(deviates.abs().max()) < 6.5


def test_the_ends_of_the_hash_give_finite_normal_numbers(monkeypatch):
    monkeypatch.setattr(
        "model.nn.dropout.random_bits", lambda *args: torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)
    )
    low, high = random_normal(2, torch.tensor([0]), 0).tolist()
    assert low == -high
    assert 5.2 < high < 5.5


def masked(p: float, vocab_size: int, n: int = N, key: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(vocab_size, (8, n // 8), generator=torch.Generator().manual_seed(0))
    return tokens, replace_tokens(
        tokens[None], torch.tensor([p]), vocab_size, torch.tensor([key], dtype=torch.int32), 65_538
    )[0]


@pytest.mark.parametrize("vocab_size", [3, 27, 257, 49_152])
@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_tokens_are_replaced_by_others_all_equally_likely(p, vocab_size):
    n = 2**18
    tokens, found = masked(p, vocab_size, n)
    hit, text = found != tokens, tokens != 0
    assert not (hit & ~text).any()
    assert int(found[text].min()) >= 1
    assert int(found.max()) < vocab_size
    able = int(text.sum())
    assert float(hit[text].float().mean()) == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / able))
    # All ids but the end token come equally often, and all distances from the token itself.
    step = (found[hit] - tokens[hit]) % (vocab_size - 1)
    for numbers, n in ((found[hit] - 1, vocab_size - 1), (step - 1, vocab_size - 2)):
        cells = min(n, 64)
        counts = torch.bincount(numbers * cells // n, minlength=cells).double()
        widths = torch.bincount(torch.arange(n) * cells // n, minlength=cells).double() / n
        assert float(((counts / int(hit.sum()) - widths) ** 2 / widths).sum()) * int(hit.sum()) < cells + 6 * cells**0.5


def test_replacing_depends_on_the_key_alone_and_is_nothing_at_probability_zero():
    tokens, found = masked(0.3, 27)
    assert torch.equal(found, masked(0.3, 27)[1])
    assert not torch.equal(found, masked(0.3, 27, key=6)[1])
    assert torch.equal(masked(0.0, 27)[1], tokens)
    assert found.dtype == tokens.dtype


def test_replaced_tokens_side_by_side_are_those_alone():
    tokens = torch.randint(27, (3, 4, 50), generator=torch.Generator().manual_seed(0))
    p, keys = torch.tensor([0.0, 0.3, 0.9]), torch.tensor([1, 2, 3], dtype=torch.int32)
    together = replace_tokens(tokens, p, 27, keys, 65_538)
    assert torch.equal(together[0], tokens[0])
    for i in range(3):
        assert torch.equal(together[i], replace_tokens(tokens[i : i + 1], p[i : i + 1], 27, keys[i : i + 1], 65_538)[0])


def test_runs_side_by_side_get_the_masks_that_they_get_alone():
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    p, keys = torch.tensor([0.0, 0.3, 0.9]), torch.tensor([1, 2, 3], dtype=torch.int32)
    together = dropout(x, p, keys, 4)
    for i in range(3):
        assert torch.equal(together[i], dropout(x[i], p[i : i + 1], keys[i : i + 1], 4))


def test_gradients_pass_where_activations_do():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = dropout(x, torch.tensor([0.5]), torch.tensor([5], dtype=torch.int32), 1)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y != 0, 2.0, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_keeps_the_type(dtype):
    found = dropout(torch.ones(10, dtype=dtype), torch.tensor([0.1]), torch.tensor([5], dtype=torch.int32), 1)
    assert found.dtype == dtype


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_random_numbers_of_a_pack_are_those_of_eager(monkeypatch, tmp_path):
    # torch.compile once multiplied the keys in float32, so that the runs of a compiled pack had masks of their own
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    p, keys = torch.tensor([0.3, 0.5, 0.1]), torch.tensor([5, -77, 2**31 - 1], dtype=torch.int32)
    tokens = (torch.arange(1001) % 27).expand(3, 1, -1)

    def drawn(p, key):
        return (
            dropout(torch.ones(3, 1001), p, key, 3),
            replace_tokens(tokens, p, 27, key, 65_538),
            random_normal(1001, key, 65_537),
        )

    try:
        compiled = torch.compile(drawn)(p, keys)
    except torch._inductor.exc.InductorError as error:
        if "compiler" not in str(error).lower():
            raise
        pytest.skip(f"no C++ compiler that works: {error}")
    wanted = drawn(p, keys)
    assert torch.equal(compiled[0], wanted[0])
    assert torch.equal(compiled[1], wanted[1])
    torch.testing.assert_close(compiled[2], wanted[2])

"""Dropout and noise from a counter-based generator: each number is a hash of (seed, micro-step, site, element).

The random numbers of a run depend neither on the other runs of its pack nor on the device, because the hash uses
integer arithmetic only. On one CPU thread, this dropout takes half the time of torch.nn.functional.dropout.
A site is a number for one place in the network that draws random numbers.
"""

import math

import torch
from torch import Tensor

from model.data.tokenizer import END

# Odd multipliers of the "lowbias32" integer hash (Wellons 2018), as signed 32-bit numbers.
M1, M2 = 0x7FEB352D, 0x846CA68B - 2**32
GOLDEN = 0x9E3779B9 - 2**32


def random_bits(n: int, key: Tensor, site: int) -> Tensor:
    """Return n pseudo-random int32 numbers of each run, (K, n), uniform over the whole range.

    The high bits are the most random ones.

    key: (K,) int32, from the seed and the micro-step of each run. site: number of the place in the network.
    """
    # The multiplier is read from a tensor. Torch's compiler would multiply a constant by the size of a row, and Triton
    # refuses the product, which has more than 32 bits.
    multiplier = (key[0] & 0) | GOLDEN
    v = torch.arange(n, dtype=torch.int32, device=key.device).mul_(multiplier)
    # Key and site are combined by exclusive or between two multiplications. Added, they would only shift the sequence,
    # and two sites could get the same mask a few elements apart. The site is multiplied in Python and the key is not
    # multiplied, because torch.compile (2.13, CPU) multiplies the few integers of a pack in float32.
    v = v ^ (key ^ ((site * M2 + 2**31) % 2**32 - 2**31))[:, None]
    # torch shifts the sign bit in, so the masks remove it. In-place operations take half the time.
    v ^= (v >> 16).bitwise_and_(0xFFFF)
    v *= M1
    v ^= (v >> 15).bitwise_and_(0x1FFFF)
    v *= M2
    return v


def threshold(p: Tensor) -> Tensor:
    """Return the int32 that a hash is below with probability p. p: in [0, 1)."""
    return (p * 2**32 - 2**31).to(torch.int32)


def dropout(x: Tensor, p: Tensor, key: Tensor, site: int) -> Tensor:
    """Zero elements of x with probability p and scale the others by 1 / (1 - p).

    x: elements of the first run, then those of the next run, in any shape. p: probability in each run, (K,), in [0, 1).
    key, site: as in `random_bits`.
    """
    kept = random_bits(x.numel() // len(p), key, site) >= threshold(p)[:, None]
    return x * (kept * (1 / (1 - p)).to(x.dtype)[:, None]).view(x.shape)


def random_normal(n: int, key: Tensor, site: int) -> Tensor:
    """Return n standard normal numbers of each run, (K, n), truncated at 5.4.

    They are computed by inverse transform sampling from 24 random bits. key, site: as in `random_bits`.
    """
    # 24 bits plus one half are exact in float32, so that the ends -1 and 1 never occur.
    return torch.erfinv(((random_bits(n, key, site) >> 8) + 0.5) * 2**-23) * math.sqrt(2)


def replace_tokens(tokens: Tensor, p: Tensor, vocab_size: int, key: Tensor, site: int) -> Tensor:
    """Replace each token with probability p by another token, drawn uniformly. The end token takes no part.

    tokens: (K, B, T). p: (K,), in [0, 1). site: the function uses this site and the next one.
    """
    # int32, because torch.compile (2.13, CPU) crashes on torch.where of int64 with a comparison of int32.
    ids = tokens.int()
    n = ids[0].numel()
    replaced = (random_bits(n, key, site) < threshold(p)[:, None]).view(ids.shape) & (ids != END)
    drawn = random_bits(n, key, site + 1).long() + 2**31  # in [0, 2**32)
    other = 1 + (drawn * (vocab_size - 2) >> 32).int().view(ids.shape)
    return torch.where(replaced, other + (other >= ids), ids).long()

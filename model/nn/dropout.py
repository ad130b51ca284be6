"""Random numbers inside the network: hashes of (seed, micro-step, site, element), not draws from a generator.

A run's numbers then depend neither on who shares its pack nor on the device: the arithmetic is on integers. One
CPU thread spends half of what torch's own dropout takes.
"""

import math

import torch
from torch import Tensor

from model.data.tokenizer import END

# Odd multipliers of the "lowbias32" integer hash (Wellons 2018), as signed 32-bit numbers.
M1, M2 = 0x7FEB352D, 0x846CA68B - 2**32
GOLDEN = 0x9E3779B9 - 2**32


def bits(n: int, key: Tensor, site: int) -> Tensor:
    """Return n pseudo-random int32 numbers, (n,), uniform over the whole range; the high bits are the good ones.

    key: 0-D int32, from the seed and the micro-step. site: which place in the network asks, each with its own number.
    """
    v = torch.arange(n, dtype=torch.int32, device=key.device).mul_(GOLDEN)
    # Key and site enter by exclusive or, between multiplications: added, they would only shift the sequence, and two
    # sites could see the same mask a few elements apart. The site is multiplied here and the key not at all, since
    # torch.compile (2.13, CPU) multiplies the few integers of a pack in float32.
    v = v ^ (key ^ ((site * M2 + 2**31) % 2**32 - 2**31))
    # torch shifts the sign in; without the masks every number would lose its highest bit. In place takes half the time.
    v ^= (v >> 16).bitwise_and_(0xFFFF)
    v *= M1
    v ^= (v >> 15).bitwise_and_(0x1FFFF)
    v *= M2
    return v


def threshold(p: Tensor) -> Tensor:
    """Return the number below which a hash is with probability p. p: 0-D, in [0, 1)."""
    return (p * 2**32 - 2**31).to(torch.int32)


def dropout(x: Tensor, p: Tensor, key: Tensor, site: int) -> Tensor:
    """Zero elements of x with probability p and scale the others by 1 / (1 - p). p: 0-D, in [0, 1)."""
    kept = (bits(x.numel(), key, site) >= threshold(p)).view(x.shape)
    return x * (kept * (1 / (1 - p)).to(x.dtype))


def normal(n: int, key: Tensor, site: int) -> Tensor:
    """Return n standard normal numbers, (n,), cut at 5.4: the inverse of their distribution at 24 hashed bits."""
    # 24 bits and a half are exact in float32, hence never at the ends of (-1, 1).
    return torch.erfinv(((bits(n, key, site) >> 8) + 0.5) * 2**-23) * math.sqrt(2)


def replaced(tokens: Tensor, p: Tensor, vocab_size: int, key: Tensor, site: int) -> Tensor:
    """Replace tokens with probability p by another one, all equally likely; the end token stays and never comes.

    p: 0-D, in [0, 1). site: and the one after it.
    """
    # In int32: torch.compile (2.13, CPU) crashes on a choice among int64 by the comparison of int32.
    ids = tokens.int()
    hit = (bits(ids.numel(), key, site) < threshold(p)).view(ids.shape) & (ids != END)
    drawn = bits(ids.numel(), key, site + 1).long() + 2**31  # in [0, 2**32)
    other = 1 + (drawn * (vocab_size - 2) >> 32).int().view(ids.shape)
    return torch.where(hit, other + (other >= ids), ids).long()

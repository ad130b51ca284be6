"""Independent random streams from one seed, so that a change to one stream does not affect the others."""

from hashlib import sha256


def derive(seed: int, label: str) -> int:
    """Return a 64-bit seed for one stream. label: name of the stream, such as "data", "weights" or "sampler".

    The seed is equal on all machines and versions, whereas Python's hash() is salted in each process.
    """
    return int.from_bytes(sha256(f"{seed}:{label}".encode()).digest()[:8], "little")

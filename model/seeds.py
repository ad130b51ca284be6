"""Independent random streams from one seed, so that changing one use of chance leaves the others alone."""

from hashlib import sha256


def derive(seed: int, label: str) -> int:
    """Return a 64-bit seed for one stream, such as "data", "weights", "dropout" or "sampler".

    Equal on every machine and version: Python's own hash() is salted anew in each process.
    """
    return int.from_bytes(sha256(f"{seed}:{label}".encode()).digest()[:8], "little")

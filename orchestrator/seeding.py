"""Seeds for independent streams of random numbers."""

from __future__ import annotations

import hashlib

DATA_ORDER, AUGMENT, DROPOUT, INIT, SPLIT, AUTO, SEARCH, TRIAL = range(8)
"""Names of the streams; the first number after the seed in `derive`."""


def derive(seed: int, *path: int) -> int:
    """A 63-bit seed for one stream, such as ``derive(seed, AUGMENT, epoch, index, number)``.

    Hashing keeps streams independent: neighbouring seeds or epochs share nothing, which adding
    numbers up would not give.
    """
    text = ",".join(map(str, (seed, *path))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

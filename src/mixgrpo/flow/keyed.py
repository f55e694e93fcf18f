"""Random generators as a function of integers. No torch."""

import hashlib

import numpy as np


def keyed_generator(*key: int) -> np.random.Generator:
    """Return a generator whose stream depends on `key` alone, integers from -2^63 to 2^63 - 1.

    Philox takes a key of 128 bits; torch's own CPU generator uses only 32 bits of its seed.
    """
    digest = hashlib.blake2b(b"".join(part.to_bytes(8, "little", signed=True) for part in key), digest_size=16)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))

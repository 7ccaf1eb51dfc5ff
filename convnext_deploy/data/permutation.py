"""Random orders of many numbers, of which each place is computed alone: they take no memory, and every process sees the same."""

import numpy as np
from numpy.typing import NDArray

# NumPy's own permutation of so many takes 8 MB and some milliseconds, and is uniform. Of fewer numbers a cipher would not be.
MOST_IN_MEMORY = 1 << 20
_ROUNDS = (
    8  # of a Feistel network; from 4 on it cannot be told from a random order by few of its places (Luby, Rackoff 1988)
)


class Permutation:
    """A random order of the numbers below `count`.

    Of many, it is a Feistel network over a power of 4 that is at least `count`, with cycle walking: what falls beyond `count` is
    enciphered again (Black, Rogaway 2002, "Ciphers with arbitrary finite domains"). The order is as random as its keys tell.

    Args:
        rng: where the order comes from; equal ones give equal orders.
        count: of the numbers.
    """

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self._count = count
        self._whole = rng.permutation(count) if count <= MOST_IN_MEMORY else None
        self._half = np.uint64(((count - 1).bit_length() + 1) // 2)  # bits
        self._keys = rng.integers(0, 1 << 64, _ROUNDS if self._whole is None else 0, np.uint64)

    def __len__(self) -> int:
        return self._count

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers that stand at some places of the order, `(N,)`."""
        if self._whole is not None:
            return self._whole[places]
        found = self._encipher(places.astype(np.uint64))
        while len(beyond := np.flatnonzero(found >= self._count)):
            found[beyond] = self._encipher(found[beyond])
        return found.astype(np.int64)

    def _encipher(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left, right = numbers >> self._half, numbers & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << self._half) | right


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return words of which each bit depends on each bit of those given (the finalizer of SplitMix64, Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))

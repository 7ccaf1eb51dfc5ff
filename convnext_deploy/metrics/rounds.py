"""Times of several things measured in rounds, on a machine that is slower in one round than in another."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_PASSES = 4


def settle_rounds(times: ArrayLike) -> NDArray[np.float64]:
    """Return the time of each thing `(things,)`, of times > 0 `(things, rounds)`.

    A round that was slow for all things is taken for a slow machine, and a single time that was slow for no reason counts little:
    each logarithm is taken for an effect of the thing and one of the round, both found by medians.

    Source: Tukey 1977, "Exploratory Data Analysis", chapter 11 (median polish).
    """
    rest = np.log(np.asarray(times, dtype=np.float64))
    own, drift = np.zeros(rest.shape[0]), np.zeros(rest.shape[1])
    for _ in range(_PASSES):
        change = np.median(rest, axis=1)
        own, rest = own + change, rest - change[:, None]
        change = np.median(rest, axis=0)
        drift, rest = drift + change, rest - change
    found: NDArray[np.float64] = np.exp(own + np.median(drift))
    return found

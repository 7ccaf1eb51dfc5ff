"""Least squares with coefficients that are not negative, as costs are."""

import numpy as np
from numpy.typing import NDArray


def solve_nonnegative(matrix: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the `x >= 0` that minimizes `|matrix @ x - values|`, of a matrix `(rows, columns)`.

    Source: Lawson, Hanson 1974, "Solving Least Squares Problems", chapter 23, algorithm NNLS.
    """
    columns = matrix.shape[1]
    found, is_free = np.zeros(columns), np.zeros(columns, dtype=bool)
    tolerance = 10 * np.finfo(float).eps * max(matrix.shape) * float(np.abs(matrix).sum(axis=0).max(initial=0.0))
    for _ in range(3 * columns):
        gradient = matrix.T @ (values - matrix @ found)
        gradient[is_free] = -np.inf
        if gradient.max(initial=-np.inf) <= tolerance:
            break
        is_free[gradient.argmax()] = True
        while True:
            trial = np.zeros(columns)
            trial[is_free] = np.linalg.lstsq(matrix[:, is_free], values, rcond=None)[0]
            blocked = is_free & (trial <= 0)
            if not blocked.any():
                found = trial
                break
            # as far towards the trial as all stay >= 0; those that reach 0 are kept there
            way = found[blocked] / np.maximum(found[blocked] - trial[blocked], np.finfo(float).tiny)
            found = np.maximum(found + way.min() * (trial - found), 0.0)
            is_free &= ~(blocked & (found <= tolerance))
            found[~is_free] = 0.0
    return found

"""95 % intervals of fractions that were counted, and of their difference on the same images.

Bundles carry this file as it is, for top-1 on the device: it takes nothing but Python 3.8 and imports nothing of this package.
"""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(successes: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); `z` is the quantile of the normal distribution, at 95 % unless given."""
    p, z2 = successes / total, z**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = z * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference_interval(
    both: int, only_first: int, only_second: int, neither: int, z: float = Z95
) -> tuple[float, float]:
    """95 % interval of the difference of two proportions measured on the same images, first minus second.

    Combines the two Wilson intervals with the correlation of the pairs; it keeps its coverage for small and for extreme
    proportions, where the textbook interval collapses.

    Args:
        both: images that both classify correctly.
        only_first: images that only the first classifies correctly.
        only_second: images that only the second classifies correctly.
        neither: images that none classifies correctly.
        z: quantile of the normal distribution; that of 95 % unless given.

    Returns: lower and upper end, as fractions in [-1, 1].
    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
        data", Statistics in Medicine 17:2635, method 10.
    """
    total = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    p1, p2 = first / total, second / total
    (l1, u1), (l2, u2) = wilson_interval(first, total, z), wilson_interval(second, total, z)
    margins = first * (total - first) * second * (total - second)
    product = both * neither - only_first * only_second
    # With a positive association a continuity correction of half the sample is taken off, not below zero.
    phi = 0.0 if margins == 0 else (max(product - total / 2, 0.0) if product > 0 else product) / math.sqrt(margins)
    d1, e2 = p1 - l1, u2 - p2
    e1, d2 = u1 - p1, p2 - l2
    below = math.sqrt(max(0.0, d1**2 - 2 * phi * d1 * e2 + e2**2))
    above = math.sqrt(max(0.0, e1**2 - 2 * phi * e1 * d2 + d2**2))
    return p1 - p2 - below, p1 - p2 + above

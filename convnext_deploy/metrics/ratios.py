"""How many times as long something takes, from times of two measured in the same rounds, with a 95 % interval."""

from collections.abc import Iterable


def median_ratio(theirs: Iterable[float], ours: Iterable[float]) -> tuple[float, float, float]:
    """Return the median of `theirs / ours` over rounds, and the lower and upper end of its 95 % interval.

    Both are times of the same rounds, so that a machine that slows down for a while slows both. The ends are two of the ratios,
    equally far from the smallest and the largest one, and hold whatever the distribution of the times is. Fewer than six rounds
    do not reach 95 %: the interval is then from the smallest ratio to the largest, with `1 - 2^(1 - rounds)`.

    Raises: ValueError: if there is no round, or one has more rounds than the other.
    Source: the sign test inverted; David, Nagaraja 2003, "Order Statistics", section 7.1.
    """
    ratios = sorted(their / our for their, our in zip(theirs, ours, strict=True))
    if not ratios:
        raise ValueError("there is no round to compare")
    count, outside = len(ratios), 0
    ways = beyond = 1  # of `count` tosses of a coin, with `outside` heads and with at most so many
    while True:
        ways = ways * (count - outside) // (outside + 1)
        if 40 * (beyond + ways) > 1 << count:  # 2 * (beyond + ways) / 2^count > 0.05, in whole numbers
            break
        beyond, outside = beyond + ways, outside + 1
    median = (ratios[(count - 1) // 2] + ratios[count // 2]) / 2
    return median, ratios[outside], ratios[count - 1 - outside]

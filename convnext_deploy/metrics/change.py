"""What a score lost against another one, whatever is scored."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """What a score lost against another one on the same images. Positive: it got worse.

    `drop_pp` in percentage points with its 95 % interval; `agreement` is the share of equal answers, right or wrong.
    """

    drop_pp: float
    interval_pp: tuple[float, float]
    agreement: float

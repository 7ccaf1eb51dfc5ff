"""Axes of plots: their ranges, and the numbers at them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LOG_FROM = 4.0  # times the smallest: from here on a linear axis would crowd the small ones
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`; `ticks` are values with the text at them, `grid` whether lines go out from these."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False
    grid: bool = True

    def place(self, value: float) -> float:
        """Return where a value lies, in per cent of the axis; of a logarithmic one it is to be positive."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return 100.0 * (at - low) / (high - low)


def linear_axis(
    title: str,
    values: Iterable[float],
    *,
    room: float = 0.06,
    within: tuple[float, float] | None = None,
    count: int = 5,
) -> Axis:
    """Return an axis that holds all values, with a share of `room` on either side, but never beyond `within`.

    Args:
        title: of the axis.
        values: one at least.
        room: share of the span.
        within: values that are possible.
        count: of numbers at the axis, about.
    """
    found = list(values)
    low, high = min(found), max(found)
    span = high - low or abs(high) * 0.2 or 1.0
    low, high = low - room * span, high + room * span
    if low == high or high - low < 1e-12 * abs(high):
        low, high = low - 0.5, high + 0.5
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    return Axis(title, low, high, linear_ticks(low, high, count))


def linear_ticks(low: float, high: float, count: int = 5) -> tuple[tuple[float, str], ...]:
    """Return about `count` round numbers from `low` to `high`, with their texts."""
    rough = (high - low) / count
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * decade for factor in _STEPS if factor * decade >= 0.999 * rough)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (1 if f"{step / decade:g}" == "2.5" else 0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [place * step for place in range(first, last + 1)]
    if max(abs(low), abs(high)) < 1e-3 or max(abs(low), abs(high)) >= 1e6:
        return tuple((value, f"{value:.2g}") for value in values)
    return tuple((value, f"{value + 0.0:,.{digits}f}") for value in values)


def percent_axis(title: str, values: Iterable[float], *, count: int = 5) -> Axis:
    """Return an axis of percentages that holds all values and ends at 0 and 100; it spans 1 at least."""
    found = list(values)
    low, high = min(found), max(found)
    if high - low < 1.0:
        middle = min(99.5, max(0.5, (low + high) / 2))
        low, high = middle - 0.5, middle + 0.5
    return linear_axis(title, (low, high), within=(0.0, 100.0), count=count)


def positive_axis(title: str, values: Sequence[float], *, log: bool | None = None, room: float = 0.14) -> Axis:
    """Return an axis of positive values: logarithmic where the largest is 4 times the smallest, or as told by `log`."""
    low, high = min(values), max(values)
    if not (high / low >= _LOG_FROM if log is None else log):
        # so that noise is not drawn as wide as a difference
        low, high = max(0.0, low - 0.15 * high), high + 0.15 * high
        return Axis(title, low, high, linear_ticks(low, high))
    more = max((high / low) ** room, 1.1)
    low, high = low / more, high * more
    return Axis(f"{title}, logarithmic", low, high, _log_ticks(low, high), log=True)


def _log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Return the powers of ten within a range, of few also what is 2 and 5 times as much, and of many not all."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    mantissas = (1, 2, 5) if last - first <= 3 else (1,)
    every = max(1, (last - first) // 6)
    exponents = [exponent for exponent in range(first, last + 1) if exponent % every == 0]
    found = [(mantissa * 10.0**exponent, exponent) for exponent in exponents for mantissa in mantissas]
    return tuple((value, _power(value, exponent)) for value, exponent in found if low <= value <= high)


def _power(value: float, exponent: int) -> str:
    return f"{value:g}" if -4 <= exponent <= 5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")

"""A latency that is asked for: `0.6x` of the dense network's, or `3ms`."""

import re
from dataclasses import dataclass

from convnext_deploy.errors import RecipeError

_EXPECTED = "expected a part of the dense network's latency such as 0.6x, or a time such as 3ms"
_BUDGET = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(x|ms)", re.IGNORECASE)
_LARGEST_MS = 1e6


@dataclass(frozen=True)
class Budget:
    """The time of a call that is allowed: as a `ratio` to the dense network in the same form, or in `ms`; one of both."""

    ratio: float | None = None
    ms: float | None = None

    def __str__(self) -> str:
        return f"{self.ratio:g}x" if self.ratio is not None else f"{self.ms:g}ms"

    def within(self, dense_ms: float) -> float:
        """Return it in milliseconds, where the dense network takes `dense_ms`."""
        if self.ms is not None:
            return self.ms
        assert self.ratio is not None  # one of both
        return self.ratio * dense_ms


def parse_budget(text: str) -> Budget:
    """Return the budget that a text says. Raises: RecipeError: if it says none, or more than the dense network takes."""
    found = _BUDGET.fullmatch(text.strip())
    if found is None:
        raise RecipeError(f"latency_budget = {text!r} is no latency; {_EXPECTED}.")
    number, unit = float(found[1]), found[2].lower()
    if unit == "ms":
        if not 0 < number <= _LARGEST_MS:
            raise RecipeError(
                f"latency_budget = {text!r} is out of range; expected > 0 ms, at most {_LARGEST_MS:g} ms."
            )
        return Budget(ms=number)
    if not 0 < number < 1:
        raise RecipeError(f"latency_budget = {text!r} is out of range; expected more than 0x and less than 1x.")
    return Budget(ratio=number)

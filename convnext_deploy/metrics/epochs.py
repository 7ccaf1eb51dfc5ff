"""Which epoch of a training was the best, by what was measured after each."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

Images = Literal["validation", "selection"]
"""The images that an epoch was scored on: those that judge the result, or training images set aside to choose an epoch by."""
Figures = Mapping[str, int | float | None]
"""What was measured after an epoch, by name; None and NaN: it was not finite."""
_SCORES = ("top1", "map")
_AVERAGED = "ema_"


def score_of(figures: Figures, images: Images = "validation") -> tuple[float, float] | None:
    """Return by what an epoch is better than another: top-1 or mAP, and of equal ones the smaller loss; None: not scored.

    A feature extractor has a loss alone. Where the weights are averaged, it is the average that counts, because it is the result.
    """
    for prefix in (_AVERAGED, ""):
        loss = f"{prefix}{images}_loss"
        score = next((name for each in _SCORES if (name := f"{prefix}{images}_{each}") in figures), None)
        if score is not None or loss in figures:
            return _finite(0.0 if score is None else figures[score]), -_finite(figures.get(loss, 0.0), math.inf)
    return None


def best_epoch(history: Sequence[Figures], images: Images = "validation") -> int | None:
    """Return the place of the best epoch, of equal ones the first; None: none was scored on these images."""
    scores = {place: score for place, row in enumerate(history) if (score := score_of(row, images)) is not None}
    return max(scores, key=lambda place: (scores[place], -place)) if scores else None


def result_epoch(history: Sequence[Figures]) -> int | None:
    """Return the place of the epoch whose weights are the result: the best on the images set aside, without any the last."""
    chosen = best_epoch(history, "selection")
    return chosen if chosen is not None else len(history) - 1 if history else None


def _finite(figure: float | None, otherwise: float = -math.inf) -> float:
    return figure if figure is not None and math.isfinite(figure) else otherwise

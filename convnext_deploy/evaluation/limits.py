"""What a gate judges: a change in percentage points, with its interval, and how much of it is allowed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

from convnext_deploy.config.recipe import Gate, Recipe
from convnext_deploy.errors import RecipeError
from convnext_deploy.metrics.multi_label import MultiLabel, images_for_unseen, unseen

ROUNDING_PP = 1e-9
"""What the arithmetic of percentages may add."""
_MOST_IMAGES = 10_000_000  # that are asked for


@dataclass(frozen=True)
class Limit:
    """A change in percentage points, and how much of it is allowed.

    `what` was measured on `images`, and `change` is what it does: it `drops` or `rises`. `needed` is about how many images, of all
    or of a class as `enough` says, would tell, where there are `total`; None: that is not known. `details` follow the change.
    `is_main`: it is the score itself, see `evaluation.metric`.
    """

    what: str
    change: str
    measured_pp: float
    interval_pp: tuple[float, float]
    allowed_pp: float
    total: int
    needed: int | None
    images: str
    enough: str
    details: str = ""
    is_main: bool = False

    @property
    def noun(self) -> str:
        """What is limited."""
        return f"{self.what} drop" if self.is_main else f"{self.change[:-1]} of {self.what}"


def check_gate(gate: Gate, what: str, *, multi_label: bool) -> None:
    """Check that what a gate limits is measured. Raises: RecipeError: if not."""
    if multi_label and gate.max_ece_increase_pp is not None:
        raise RecipeError(
            f"{what}: max_ece_increase_pp is about the probability of the one class of an image, and the data is multi-label; "
            "leave it out, and limit mAP with --max-drop, or each label with --max-class-drop."
        )


def check_gates(recipe: Recipe, *, multi_label: bool) -> None:
    """Check the gates of a recipe, see `check_gate`."""
    for stage in recipe.stages:
        check_gate(stage.gate, f"stage '{stage.name}'", multi_label=multi_label)


def images_at_this_rate(total: int, measured_pp: float, high_pp: float, allowed_pp: float) -> int | None:
    """Return how many images would do if a change stays as measured, from `total` that are too few; None: no number anyone has.

    The interval shrinks with the root of the number.
    """
    room = allowed_pp - measured_pp
    times = ((high_pp - measured_pp) / room) ** 2 if room > ROUNDING_PP else inf
    return ceil(total * times) if total * times <= _MOST_IMAGES else None


def limit_labels(gate: Gate, found: MultiLabel, total: int, names: Sequence[str] | None) -> Iterator[Limit]:
    """Yield what a gate limits of multi-label data: the drop of mAP, and the largest drop of a label's average precision."""
    allowed = gate.max_top1_drop_pp
    if allowed is not None and found.drop_pp is not None and found.drop_interval_pp is not None:
        yield Limit(
            "mAP",
            "drops",
            found.drop_pp,
            found.drop_interval_pp,
            allowed,
            total,
            _images_for_labels(total, found, allowed) if allowed > 0 else None,
            f"{total:,} images",
            "would do if it stays as measured",
            is_main=True,
        )
    allowed, worst = gate.max_class_drop_pp, worst_label(found)
    if allowed is not None and worst is not None:
        label, drop_pp, interval_pp, positives = worst
        name = str(label) if names is None else names[label]
        yield Limit(
            "the average precision of a label",
            "drops",
            drop_pp,
            interval_pp,
            allowed,
            total,
            images_at_this_rate(total, drop_pp, interval_pp[1], allowed) if allowed > 0 else None,
            f"{total:,} images",
            "would do if it stays as measured",
            f" (label '{name}', which {positives:,} images have)",
        )


def _images_for_labels(total: int, found: MultiLabel, allowed_pp: float) -> int | None:
    """Return how many images would bring the interval of the drop within what is allowed; see `images_at_this_rate`."""
    assert found.drop_pp is not None and found.drop_interval_pp is not None  # noqa: PT018  (they are limited)
    drop, high = found.drop_pp, found.drop_interval_pp[1]
    if high - drop > 100 * unseen(found.counted) + ROUNDING_PP:
        return images_at_this_rate(total, drop, high, allowed_pp)
    # what few images leave open where nothing changed is the rest, and shrinks with their number
    room = (allowed_pp - drop) / 100
    if room <= ROUNDING_PP:
        return None
    return ceil(total * images_for_unseen(room) / found.counted)


def worst_label(found: MultiLabel) -> tuple[int, float, tuple[float, float], int] | None:
    """Return the label whose average precision drops most: its drop, the interval of the largest drop of any, and its images."""
    judged = [
        (each.drop_pp, each.drop_interval_pp, each)
        for each in found.classes
        if each.drop_pp is not None and each.drop_interval_pp is not None
    ]
    if not judged:
        return None
    drop, _, worst = max(judged, key=lambda one: (one[0], -one[2].label))
    interval = max(interval[0] for _, interval, _ in judged), max(interval[1] for _, interval, _ in judged)
    return worst.label, drop, interval, worst.positives

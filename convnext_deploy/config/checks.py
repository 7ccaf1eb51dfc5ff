"""The checks that every config record makes of its values."""

import dataclasses
import functools
import typing
from collections.abc import Collection
from typing import Any, Literal

from convnext_deploy.config.image_size import LARGEST_SIDE, plain_size, sides_of
from convnext_deploy.errors import RecipeError, suggest

LARGEST_COUNT, LARGEST_SEED = 2**31 - 1, 2**63 - 1


def require(condition: bool, field_name: str, found: object, expected: str) -> None:
    """Check a value. Raises: RecipeError: naming the field, what was found and what was expected."""
    if not condition:
        raise RecipeError(f"{field_name} = {found!r} is out of range; expected {expected}.")


def require_choice(field_name: str, found: object, known: Collection[object]) -> None:
    """Check a value that is chosen by name. Raises: RecipeError: naming the field, what was found and the choices."""
    if found not in known:
        raise RecipeError(
            f"{field_name} = {found!r} is unknown; expected one of {', '.join(map(repr, known))}."
            f"{suggest(str(found), map(str, known))}"
        )


def check_size(record: Any) -> None:
    """Give the field `image_size` of a frozen record the one form that a size has. Raises: RecipeError: if it is out of range."""
    size = plain_size(record.image_size)
    object.__setattr__(record, "image_size", size)
    held = all(1 <= side <= LARGEST_SIDE for side in sides_of(size))
    require(held, "image_size", size, f"1 to {LARGEST_SIDE}")


def check_fields(record: object) -> None:
    """Check every field of a dataclass whose type is a `Literal`, and that no count is beyond what libraries in C can take.

    Raises: RecipeError: as `require` and `require_choice`.
    """
    for name, known in _choices_of(type(record)).items():  # type: ignore[arg-type]  # classes are hashable
        require_choice(name, getattr(record, name), known)
    for field in dataclasses.fields(record):  # type: ignore[arg-type]  # likewise
        value, largest = getattr(record, field.name), LARGEST_SEED if field.name.endswith("seed") else LARGEST_COUNT
        within = not isinstance(value, int) or abs(value) <= largest
        require(within, field.name, value, f"at most {largest}")


@functools.cache
def _choices_of(record_type: type[Any]) -> dict[str, tuple[object, ...]]:
    hints = typing.get_type_hints(record_type)
    literals = {name: hint for name, hint in hints.items() if typing.get_origin(hint) is Literal}
    return {f.name: typing.get_args(literals[f.name]) for f in dataclasses.fields(record_type) if f.name in literals}

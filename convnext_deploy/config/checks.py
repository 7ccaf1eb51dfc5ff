"""The check that every config record makes of its values."""

from __future__ import annotations

from convnext_deploy.errors import RecipeError


def require(condition: bool, field_name: str, found: object, expected: str) -> None:
    """Check a value. Raises: RecipeError: naming the field, what was found and what was expected."""
    if not condition:
        raise RecipeError(f"{field_name} = {found!r} is out of range; expected {expected}.")

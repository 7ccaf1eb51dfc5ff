"""`--quiet`, which the group and every verb take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])
_QUIET = "convnext_deploy.quiet"  # where click keeps, for a whole command line, whether --quiet was given


def quiet_option(function: Function) -> Function:
    """Add `--quiet`, which `is_quiet` tells of."""

    def remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        context.meta[_QUIET] = value or context.meta.get(_QUIET, False)

    return click.option(
        "--quiet",
        "-q",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Print errors and the result only: no progress, no notes.",
    )(function)


def is_quiet() -> bool:
    """Whether `--quiet` stands anywhere in the command line that is being executed."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))

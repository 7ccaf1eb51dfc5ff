"""A line that a command has begun, where it takes more than a moment until its libraries are loaded."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from convnext_deploy.system.distributed import launched
from convnext_deploy.system.standard_error import tell

PATIENCE_S = 1.5
_STARTED = "convnext_deploy.started"  # where click keeps, for a whole command line, what ends the waiting


@contextmanager
def starting(context: click.Context, *, quiet: bool) -> Iterator[None]:
    """Say that a command loads its libraries, unless `started` is called soon, or the block ends."""
    started = threading.Event()
    context.meta[_STARTED] = started
    if quiet or not launched().is_first:
        yield
        return

    def wait() -> None:
        if not started.wait(PATIENCE_S):
            tell(f"{context.info_name}: loading libraries")

    threading.Thread(target=wait, name="starting", daemon=True).start()
    try:
        yield
    finally:
        started.set()


def started() -> None:
    """Take down that the command which is being executed has its libraries, and says by itself how it goes on."""
    context = click.get_current_context(silent=True)
    event = None if context is None else context.meta.get(_STARTED)
    if event is not None:
        event.set()

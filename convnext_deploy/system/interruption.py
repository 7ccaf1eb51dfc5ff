"""Signals that ask the program to end: raised where it stands, or kept until a step is done and its state is saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAME_S = 0.5  # a terminal and the launcher behind it both pass a Ctrl-C on; what comes later was pressed again
_POLL_S = 0.3


class Interrupted(BaseException):
    """A signal asked this process to end; no `Exception`, so that nothing on the way takes it for an error.

    `saved` says what of the work under way is kept, where something is.
    """

    def __init__(self, signum: int, saved: str = "") -> None:
        super().__init__(signum, saved)
        self.signum, self.saved = signum, saved

    @property
    def code(self) -> int:
        """The exit code of a process that the signal ended."""
        return 128 + self.signum


class Interruption:
    """Answers signals: the first one raises `Interrupted` in the main thread, a second one ends the process at once.

    While modules are imported it waits for the end of that: extension modules turn what is raised in them into errors of their
    own, which are then taken for a missing package. Where the exception is lost on its way, as in a destructor, it is raised again.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.told = False  # whether the user has been told
        self._at = 0.0

    def answer(self, signum: int, frame: FrameType | None) -> None:
        """Answer a signal. Raises: Interrupted."""
        if self.signum is None:
            self.note(signum)
            if not _is_importing(frame):
                raise Interrupted(signum)
        elif time.monotonic() - self._at >= _SAME_S:
            self._end_at_once(signum)

    def note(self, signum: int) -> None:
        """Take down the first signal; `Interrupted` is being raised, or will be as soon as it can."""
        self.signum, self._at = signum, time.monotonic()
        # from now on nobody wants to know what fails where
        sys.unraisablehook = lambda _: None
        threading.excepthook = lambda _: None
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, self._raise_again)
            signal.setitimer(signal.ITIMER_REAL, _POLL_S, _POLL_S)

    def settle(self) -> None:
        """Raise no more: the exception has arrived."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _raise_again(self, _: int, frame: FrameType | None) -> None:
        """Raise what was not raised yet, or was lost."""
        if self.signum is not None and not _is_under_way() and not _is_importing(frame):
            raise Interrupted(self.signum)

    def _end_at_once(self, signum: int) -> None:
        if not self.told:
            with suppress(OSError):
                # this may come while something else is printed, and a stream in Python does not take a second writer
                os.write(2, b"\ninterrupted again, and ended at once\n"[0 if os.isatty(2) else 1 :])
        os._exit(128 + signum)


def _is_under_way() -> bool:
    """Whether the exception is on its way through what cleans up."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def install() -> Interruption | None:
    """Answer signals in this process from now on; None if that is done already, or this is not the main thread.

    Those that are ignored stay so, as under `nohup`.
    """
    if threading.current_thread() is not threading.main_thread() or _installed() is not None:
        return None
    interruption = Interruption()
    _set(dict.fromkeys(_current(), interruption.answer))
    return interruption


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Answer signals within the block, if the process does not do so already."""
    before, hooks = _current(), (sys.unraisablehook, threading.excepthook)
    own = install()
    try:
        yield own or _installed() or Interruption()
    finally:
        if own is not None:
            own.settle()
            _set(before)
            sys.unraisablehook, threading.excepthook = hooks


class Postponement:
    """Keeps the first signal. `saved`: what `Interrupted` then says of the work under way."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.saved = ""
        self._raising = False
        self._at = 0.0
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    def request(self) -> int:
        """Return the signal; if none came, because it came to another process, do as if it had."""
        self.signum = self.signum or int(signal.SIGTERM)
        return self.signum

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise `Interrupted` within the block, at once or when a signal comes: nothing there needs to be finished."""
        self._raising = True
        try:
            if self.signum is not None:
                raise Interrupted(self.signum)
            yield
        finally:
            self._raising = False

    def _keep(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._at = signum, time.monotonic()
            if self._raising:
                raise Interrupted(signum)
        elif time.monotonic() - self._at >= _SAME_S:
            self._deliver(signum, frame)

    def _deliver(self, signum: int, frame: FrameType | None) -> None:
        """Let those answer the signal who would have done so. Raises: Interrupted, or what they raise, if anything."""
        _set(self._before)
        answer = self._before.get(signum)
        owner = getattr(answer, "__self__", None)
        if isinstance(owner, Interruption):
            owner.note(signum)
            raise Interrupted(signum, self.saved)
        if callable(answer):
            answer(signum, frame)
        else:
            signal.raise_signal(signum)


@contextmanager
def postponed() -> Iterator[Postponement]:
    """Keep signals that would end this process until the block is left; one that is repeated is answered at once.

    A block that `Interrupted` leaves has not done its work, so that it goes on to be raised, whoever answers the signal.
    """
    found = Postponement()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    found._before = _current()
    _set(dict.fromkeys(found._before, found._keep))
    try:
        yield found
    except Interrupted as error:
        error.saved = found.saved
        raise
    finally:
        _set(found._before)
        if found.signum is not None:
            found._deliver(found.signum, sys._getframe())


@contextmanager
def blocked() -> Iterator[None]:
    """Let no signal in within the block; it comes after it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, signal.SIGALRM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_from_now_on() -> None:
    """Leave the end of this process to the one that started it, which gets the same signals. To be called while `blocked`."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, signal.SIGALRM})


def _installed() -> Interruption | None:
    owners = [getattr(handler, "__self__", None) for handler in _current().values()]
    return next((owner for owner in owners if isinstance(owner, Interruption)), None)


def _current() -> dict[int, Any]:
    """Return who answers each signal, without those that are ignored or answered outside of Python."""
    found = {signum: signal.getsignal(signum) for signum in SIGNALS}
    return {signum: handler for signum, handler in found.items() if handler not in (None, signal.SIG_IGN)}


def _set(handlers: dict[int, Any]) -> None:
    for signum, handler in handlers.items():
        signal.signal(signum, handler)

"""Errors that end in one clear line: what was found, what was expected, what to do."""

import re
from collections.abc import Iterable
from pathlib import PurePath

_ONE_SLASH = re.compile(
    r"^([a-z][a-z0-9+.-]+):[/\\](?![/\\])"
)  # all that is left of the two where a URL has become a path
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")  # letters and marks, by Unicode, that nobody sees


def printable(text: object) -> str:
    r"""Return a text on one line that shows all that is in it, and does nothing to a terminal.

    Names come from anywhere: line ends, terminal escapes, the controls of writing direction, characters of no width and what stands
    for bytes that are no text are written as Python does, such as `\n`, `\x1b` or `\u202e`.
    """
    found = _ONE_SLASH.sub(r"\1://", str(text)) if isinstance(text, PurePath) else str(text)
    if found.isprintable() and _UNSEEN.isdisjoint(found):
        return found
    return "".join(c if c.isprintable() and c not in _UNSEEN else ascii(c)[1:-1] for c in found)


class DeployError(Exception):
    """Base of every error that a user can cause and mend. The command line prints its text and exits with 1.

    The text is one line, whatever the names in it.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class RecipeError(DeployError):
    """A recipe, a stage option or a combination of them is wrong."""


class DataError(DeployError):
    """The image folder, an image or the split between train and validation is wrong."""


class RemoteError(DataError):
    """A file on another machine cannot be read; that says nothing of what is in it."""


class CheckpointError(DeployError):
    """A checkpoint cannot be read, or does not fit the network."""


class OtherNetworkError(CheckpointError):
    """A file holds weights of a network that is no ConvNeXt."""


class ArtifactError(DeployError):
    """An artifact folder or file is missing, incomplete, altered or of the wrong format."""


class SizeUntoldError(ArtifactError):
    """A graph takes images of any size, and none was named."""


class ExportError(DeployError):
    """A model could not be exported, or an engine could not be built."""


class BackendUnavailableError(DeployError):
    """The package, driver or device that a backend needs is not on this machine."""


class ProcessFailedError(DeployError):
    """A process that was to measure something crashed, or found that it cannot be measured."""


class RunnerError(DeployError):
    """There is no runner of that name, or it does not open this kind of artifact."""


class StoppedError(DeployError):
    """Who was asked whether to go on said no."""


class OutputError(DeployError):
    """The output folder cannot be written, or another process is writing it."""


class LoaderError(DeployError):
    """A process that loads images cannot be started, died, or does not answer."""


class TooLittleMemoryError(DeployError):
    """The memory of the machine, or of its GPU, is too small for what was asked."""


class ProcessLostError(DeployError):
    """The processes of a training on several GPUs or machines did not meet, or one of them is gone."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the kind of error when it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def suggest(found: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest of `known`, or an empty string when none is near."""
    import difflib  # not before there is an error: the command line imports this file at every start

    near = difflib.get_close_matches(found, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""

"""What is said when memory runs out, of the machine or of the GPU, and how a computation goes on with smaller batches.

Libraries tell it in many ways: `MemoryError`, `torch.OutOfMemoryError`, a `RuntimeError` of PyTorch's CPU allocator, classes of
ONNX Runtime's C++ module, `bad_alloc`; and what this package made of one of these keeps it as its context.
"""

import errno
import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from convnext_deploy.errors import TooLittleMemoryError
from convnext_deploy.system.progress import Progress

Result = TypeVar("Result")

LESS_MEMORY = "close other programs, use fewer --workers where there are some, or use a machine with more memory"
# Patterns are compiled when there is an error: every start of the command line imports this file.
_WORDS = (
    r"(?i)out of memory|can't allocate memory|cannot allocate memory|failed to allocate|bad_alloc|bad allocation|not enough memory|"
    r"_ALLOC_FAILED|outofmemory|failed to map segment|could not create a (primitive|memory object)$"  # the last are oneDNN's
)
_ASKED = r"(?i)allocate ([\d.]+ [KMGT]iB)|allocate (\d+) bytes|buffer of size (\d+)"
_GPU = r"CUDA|CUBLAS|CUDNN|GPU"
_THREAD = "can't start new thread"


def out_of_memory(error: BaseException) -> BaseException | None:
    """Return what said that memory ran out: the error itself, or one that it was made of; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        kinds = {kind.__name__ for kind in type(seen).__mro__}
        is_text = isinstance(seen, RuntimeError | ImportError) or type(seen).__module__.startswith("onnxruntime")
        if (
            kinds & {"MemoryError", "OutOfMemoryError"}
            or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM)
            or (is_text and (re.search(_WORDS, str(seen)) or _THREAD in str(seen)))
        ):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def too_little_memory(where: str, error: BaseException, lower: str) -> TooLittleMemoryError:
    """Return the error of a computation that ran out of memory.

    Args:
        where: it happened.
        error: what said so.
        lower: what helps: "lower batch_size or …".
    """
    text = str(error)
    if _THREAD in text:
        return TooLittleMemoryError(
            f"{where}: no thread can be started, for want of memory or by ulimit -u; raise that, or {lower}."
        )
    found = re.search(_ASKED, text)
    asked = "" if found is None else f" ({found[1] or f'{int(found[2] or found[3]):,} bytes'} more were asked for)"
    whose = "the GPU has" if re.search(_GPU, text) else "there is"
    return TooLittleMemoryError(f"{where}: {whose} too little memory{asked}; {lower}.")


@contextmanager
def needing_memory(where: str, lower: str) -> Iterator[None]:
    """Let a block that runs out of memory end in one line; the arguments are those of `too_little_memory`.

    Raises: TooLittleMemoryError.
    """
    try:
        yield
    except TooLittleMemoryError:
        raise
    except Exception as error:
        if (found := out_of_memory(error)) is None:
            raise
        # the frames of the error hold on to what filled the memory
        raise too_little_memory(where, found, lower).with_traceback(None) from None


class Halving(Generic[Result]):
    """A function of batches that is called on parts of them when the memory is too small for a whole one.

    After each time that it was, parts are half as large, for this batch and those after it.

    Args:
        function: of a batch, or a part of one: whatever can be sliced.
        join: makes one result of those of the parts.
        where: it happens, for messages.
        progress: where to say that parts became smaller.
        lower: what helps when a single item is too much.
    """

    def __init__(
        self,
        function: Callable[[Any], Result],
        join: Callable[[list[Result]], Result],
        where: str,
        progress: Progress,
        lower: str = "close other programs, or use a machine with more memory",
    ) -> None:
        self._function, self._join, self._where, self._progress, self._lower = function, join, where, progress, lower
        self._size = sys.maxsize

    def __call__(self, batch: Any) -> Result:
        """Return the result of a batch. Raises: TooLittleMemoryError: if a single item is too much."""
        while True:
            found = self._try(batch)
            if not isinstance(found, _TooMuch):
                return found
            if found.size == 1:
                raise too_little_memory(f"{self._where}, of a single image", found.error, self._lower)
            self._size = (found.size + 1) // 2
            self._progress.say(
                f"{self._where}: too little memory for {found.size} images at once; goes on with {self._size}, which changes "
                "logits by rounding at most"
            )
            del found
            release_memory()

    def _try(self, batch: Any) -> "Result | _TooMuch":
        size = min(self._size, len(batch))
        try:
            parts = [self._function(batch[i : i + size]) for i in range(0, len(batch), size)]
            return parts[0] if len(parts) == 1 else self._join(parts)
        except Exception as error:
            if (said := out_of_memory(error)) is None:
                raise
            # its text alone: the frames of the error hold on to what filled the memory
            return _TooMuch(size, MemoryError(str(said)))


class _TooMuch:
    def __init__(self, size: int, error: BaseException) -> None:
        self.size, self.error = size, error


def release_memory() -> None:
    """Give back what Python and PyTorch keep for later."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()

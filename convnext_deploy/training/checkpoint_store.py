"""The state of a training on disk: enough to go on from any step as if nothing had happened."""

import json
import os
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from convnext_deploy.artifacts.hashes import SUMS, hash_file
from convnext_deploy.documents import open_file, read_text
from convnext_deploy.errors import OutputError
from convnext_deploy.system.background import Background
from convnext_deploy.system.distributed import world
from convnext_deploy.system.files import ClosableWriter, whole_file, write_text
from convnext_deploy.system.memory_faults import out_of_memory
from convnext_deploy.system.progress import Progress, SilentProgress

LAST, BEST, HISTORY = "last.pt", "best.safetensors", "history.json"
SAVE_EVERY_S = 60.0
LARGEST_SHARE = 0.01
"""Of the time of a training that it may stand still while its state is copied."""
_WRITING_SHARE = 0.2  # of the time of a training that the disk may be busy with states
_FREE_S = 1.0  # seconds that need not be made up for


@dataclass(frozen=True)
class Owner:
    """Of which training a state is: its key, what that is a hash of, as text, and the step that it stands at."""

    key: str
    made_of: str
    step: int


def read_owner(folder: Path) -> Owner | None:
    """Return of which training the state in a folder is, without reading its tensors; None if there is none, or it is damaged."""
    if not (folder / LAST).is_file():
        return None
    try:
        state = torch.load(folder / LAST, map_location="cpu", weights_only=True, mmap=True)
        return Owner(str(state["key"]), str(state.get("made_of", "")), int(state["step"]))
    except Exception:  # whatever the reason, there is nothing that could go on
        return None


def remove_state(folder: Path) -> None:
    """Remove what a training left in its folder. Raises: OutputError: if that cannot be done."""
    try:
        for name in (LAST, BEST, SUMS, HISTORY):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"the training in {folder} cannot be removed ({error.strerror}).") from None


class TakesEpochs(Protocol):
    """Something that the figures of epochs are told to."""

    def write(self, row: Mapping[str, float]) -> None:
        """Take the figures of an epoch, `epoch` being its number."""


class TrainingStore:
    """A folder with the last state, the best weights and the history of a training. Of several processes only the first writes.

    Args:
        folder: made when something is written; what it holds of another training is not used.
        key: names the training: its settings, data, starting weights and result version. One with another key is of another one.
        save_every_s: least time between two states; what was done since the last one is done again after a kill. It grows with what
            saving costs, see `LARGEST_SHARE`, but from 0, which is a state after every step.
        events: where the figures of each epoch also go, those of earlier processes as well; None: nowhere.
        progress: where to say that a state is damaged; None: nowhere.
        made_of: what the key is a hash of, as text, which `read_owner` returns.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        save_every_s: float = SAVE_EVERY_S,
        events: TakesEpochs | None = None,
        progress: Progress | None = None,
        made_of: str = "",
    ) -> None:
        self.folder, self.key, self.save_every_s, self.events = folder, key, save_every_s, events
        self._made_of = made_of
        self._told = 0  # epochs
        self._progress = progress or SilentProgress()
        self._background = Background()
        self._saved_at = time.monotonic()
        self._waited_s = self._wrote_s = 0.0

    def is_due(self) -> bool:
        """Whether the last state is old enough for another one."""
        least = self.save_every_s and max(self.save_every_s, self._costs_s())
        return time.monotonic() - self._saved_at >= least

    def is_cheap(self) -> bool:
        """Whether a state after an epoch costs little, measured by the time since the last one."""
        return not self.save_every_s or time.monotonic() - self._saved_at >= self._costs_s()

    def _costs_s(self) -> float:
        """Return how much time a state needs between it and the next for its cost to be a small share of that."""
        return max(
            max(0.0, self._waited_s - _FREE_S) / LARGEST_SHARE, max(0.0, self._wrote_s - _FREE_S) / _WRITING_SHARE
        )

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state of tensors, numbers and texts, completely or not at all, and return when it is written."""
        if not world().is_first:
            return
        self._background.finish()
        self._write(state)
        self._saved_at = time.monotonic()

    def save_meanwhile(self, state: Mapping[str, Any] | None, best: Mapping[str, Tensor] | None = None) -> None:
        """Copy a state and the best weights into memory, and write what there is of them while the training goes on.

        `finish` waits for it. Raises: OutputError: if what was given before could not be written.
        """
        if not world().is_first or (state is None and best is None):
            return
        started = time.monotonic()
        self._background.finish()  # a disk so slow is one of the costs
        copied, weights = _on_host(state), _on_host(best)

        def write() -> None:
            if weights is not None:
                self.save_best(weights)
            if copied is not None:
                self._write(copied)

        self._background.run(write)
        if state is not None:
            self._saved_at = time.monotonic()
            self._waited_s = self._saved_at - started

    def finish(self) -> None:
        """Wait until everything is written. Raises: OutputError: if it could not be."""
        self._background.finish()

    def _write(self, state: Mapping[str, Any]) -> None:
        started = time.monotonic()
        with whole_file(self.folder / LAST, needed=_size(state)) as partial, ClosableWriter(partial) as file:
            torch.save({"key": self.key, "made_of": self._made_of, **state}, file)
            file.flush()
            os.fsync(file.fileno())  # a state that is lost with the power is no worse than none, half of one is
        self._wrote_s = time.monotonic() - started

    def load(self) -> dict[str, Any] | None:
        """Return the last state of this very training, or None if there is none that is as it was written."""
        path = self.folder / LAST
        try:
            with open_file(path) as stream, zipfile.ZipFile(stream) as archive:
                # PyTorch writes a checksum of every record and does not look at them when it reads
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(damaged)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # a state that cannot be read, for whatever reason, is no state
            if out_of_memory(error) is not None:
                raise  # which says nothing of the state
            self._progress.say(f"the state of the training in {path} is damaged; the training begins again")
            return None
        return state if isinstance(state, dict) and state.get("key") == self.key else None

    def save_best(self, weights: Mapping[str, Tensor]) -> None:
        """Write the weights of the epoch with the best validation and their checksum, completely or not at all."""
        if not world().is_first:
            return
        sums = self.folder / SUMS
        with whole_file(self.folder / BEST, needed=_size(weights)) as partial:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, partial)
            line, before = f"{hash_file(partial)}  {BEST}\n", read_text(sums) if sums.is_file() else ""
            write_text(sums, line + before)  # whenever this process is killed, the weights that are there are named
        write_text(sums, line)

    def save_history(self, history: list[dict[str, float]]) -> None:
        """Write the figures of the finished epochs."""
        if not world().is_first:
            return
        write_text(self.folder / HISTORY, json.dumps(history, indent=1) + "\n")
        if self.events is not None:
            for row in history[self._told :]:
                self.events.write(row)
            self._told = len(history)


def _on_host(state: Any) -> Any:
    """Return a copy of a state in the host's memory, of which nothing changes with the training."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: _on_host(part) for name, part in state.items()}
    return type(state)(map(_on_host, state)) if isinstance(state, list | tuple) else state


def _size(state: Any) -> int:
    """Return the bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(_size, parts))

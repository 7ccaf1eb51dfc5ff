"""The teacher's predictions for the very crops that students see, computed once and kept on disk.

Every image of an epoch's plan (see `Batch`) has a row in the epoch's file: the mean prediction of the teachers as half-precision
log-probabilities, of all classes or of the most probable ones, and a check sum. A row that is not there, or is damaged, is computed
and written; so any process may fill any part, be killed, and come back.

Source: Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition", arXiv 2112.01528, with its "marginal
smoothing" for the classes that are not kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.data.loaders import Batch

_LEAST = 1e-12  # probability of all classes that are not kept, together; its logarithm is well inside half precision
_PRIME = 0x01000193


class TeacherCache:
    """Predictions of one plan.

    Args:
        folder: where the files are; it must be named after everything that decides the predictions.
        rows: images of an epoch.
        classes: of the teachers.
        temperature: at which the predictions are kept and averaged.
        top_k: how many classes of an image are kept; the rest of its probability is spread evenly over the others. 0: all classes.
        compute: the logits `(N, classes)` of images `(N, C, H, W)`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rows: int,
        classes: int,
        temperature: float,
        top_k: int,
        compute: Callable[[Tensor], Tensor],
    ) -> None:
        self.folder, self.rows, self.classes, self.temperature = folder, rows, classes, temperature
        self.top_k = 0 if top_k >= classes else top_k
        self.compute = compute
        self.computed = 0
        """Images that the teachers had to look at."""
        kept = self.top_k or classes
        fields = [("logits", "<f2", (kept,))]
        if self.top_k:
            fields += [("rest", "<f2", (1,)), ("index", "<u2" if classes <= 1 << 16 else "<u4", (kept,))]
        self._row = np.dtype([*fields, ("check", "<u4")])

    def size_bytes(self, epochs: int) -> int:
        """Return the size of so many epochs on disk."""
        return epochs * self.rows * self._row.itemsize

    def __call__(self, batch: Batch) -> Tensor:
        """Return logits `(N, classes)` float32, from which softmax at the temperature makes the teachers' mean prediction.

        They have been rounded to what the file holds, also where they were computed just now: a training does not depend on
        which part of its predictions was there before.
        """
        path = self.folder / f"epoch-{batch.epoch:04d}.bin"
        rows = self._read(path, batch.first_row, len(batch))
        if rows is None:
            rows = self._encode(self.compute(batch.images))
            self.computed += len(batch)
            self._write(path, batch.first_row, rows)
        return self._decode(rows).to(batch.images.device, non_blocking=True)

    def _read(self, path: Path, first: int, count: int) -> NDArray[np.void] | None:
        """Return rows of a file, or None if any of them is not there."""
        try:
            with path.open("rb") as file:
                content = os.pread(file.fileno(), count * self._row.itemsize, first * self._row.itemsize)
        except FileNotFoundError:
            return None
        if len(content) != count * self._row.itemsize:
            return None
        rows = np.frombuffer(content, self._row)
        return rows if np.array_equal(rows["check"], _check(rows)) else None

    def _write(self, path: Path, first: int, rows: NDArray[np.void]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # no truncation, no append: processes write different rows of one file, in any order
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, rows.tobytes(), first * self._row.itemsize)
        finally:
            os.close(descriptor)

    def _encode(self, logits: Tensor) -> NDArray[np.void]:
        scaled = F.log_softmax(logits.float() / self.temperature, dim=1)
        rows = np.zeros(len(logits), self._row)
        if self.top_k:
            best = scaled.topk(self.top_k, dim=1)
            rest = (1.0 - best.values.double().exp().sum(1, keepdim=True)).clamp(min=_LEAST)
            rows["index"] = best.indices.cpu().numpy()
            rows["rest"] = ((rest / (self.classes - self.top_k)).log() * self.temperature).cpu().numpy()
            scaled = best.values
        rows["logits"] = (scaled * self.temperature).cpu().numpy()
        rows["check"] = _check(rows)
        return rows

    def _decode(self, rows: NDArray[np.void]) -> Tensor:
        logits = torch.from_numpy(rows["logits"].astype(np.float32))
        if not self.top_k:
            return logits
        rest = torch.from_numpy(rows["rest"].astype(np.float32)).expand(-1, self.classes)
        return rest.scatter(1, torch.from_numpy(rows["index"].astype(np.int64)), logits)


def _check(rows: NDArray[np.void]) -> NDArray[np.uint32]:
    """Return a number for each row that depends on each of its bytes, and is not 0 for zeros: those are holes in the file."""
    content = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)[:, :-4].astype(np.uint32)
    weights = np.arange(1, content.shape[1] + 1, dtype=np.uint32) * np.uint32(_PRIME) | np.uint32(1)
    sums: NDArray[np.uint32] = (content * weights).sum(1, dtype=np.uint32)
    return sums + np.uint32(1)

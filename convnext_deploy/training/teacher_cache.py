"""The teacher's predictions for the very crops that students see, computed once and kept on disk.

Every image of an epoch's plan (see `Batch`) has a row in the epoch's file: the mean prediction of the teachers as half-precision
log-probabilities, of all classes or of the most probable ones, and a check sum. A row that is not there, or is damaged, is computed
and written; so any process may fill any part, be killed, and come back. The most probable class stays the only one after rounding.

Source: Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition", arXiv 2112.01528, with its "marginal
smoothing" for the classes that are not kept.
"""

import contextlib
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.data.ahead import upload
from convnext_deploy.data.loaders import Batch
from convnext_deploy.documents import open_file
from convnext_deploy.system.disk_faults import CACHE_DIR, Target, cannot_write
from convnext_deploy.system.posix import BINARY, read_at, write_at

RESULT_VERSION = 2
"""In the name of a plan: raised when a teacher gives other predictions for the same crops, the plan has other crops, or the layout
of the files changes."""
_LOWEST = -65504.0  # of half precision; below it is minus infinity, which makes a loss NaN


class Encoded(NamedTuple):
    """Predictions as they are kept: log-probabilities times the temperature, half precision.

    `values` `(N, classes)`; or `(N, k + 1)` of the classes `kept` `(N, k)` int64, and last that of every other class.
    """

    values: Tensor
    kept: Tensor | None


def rounded(logits: Tensor, temperature: float) -> Tensor:
    """Return logits `(N, classes)` float32 as they would come out of the cache, without a copy to another device."""
    return decode(encode(logits, temperature, 0), logits.shape[1])


def encode(logits: Tensor, temperature: float, top_k: int) -> Encoded:
    """Round predictions `(N, classes)` to half precision, of the `top_k` most probable classes or of all (0)."""
    log_p = F.log_softmax(logits.float() / temperature, dim=1)
    best, index = logits.argmax(1, keepdim=True), None
    if top_k:
        # the best is the first, also of equal ones
        index = log_p.scatter(1, best, 1.0).topk(top_k, dim=1).indices
        # not 1 minus the sum of the kept ones, which would be the rounding error of that sum
        others = log_p.scatter(1, index, -math.inf).logsumexp(1, keepdim=True)
        rest = others - math.log(logits.shape[1] - top_k)
        log_p, best = torch.cat([log_p.gather(1, index), rest], dim=1), torch.zeros_like(best)
    values = (log_p * temperature).clamp(min=_LOWEST).half()
    # rounding must not make the best class one of several, of which a hard label would be the first
    highest = values.gather(1, best)
    bits = highest.view(torch.int16)
    next_above = torch.where(highest < 0, bits - 1, torch.ones_like(bits)).view(torch.float16)
    is_alone = (values >= highest).sum(1, keepdim=True) == 1
    return Encoded(values.scatter(1, best, torch.where(is_alone, highest, next_above)), index)


def decode(found: Encoded, classes: int) -> Tensor:
    """Return logits `(N, classes)` float32 from what is kept."""
    logits = found.values.float()
    if found.kept is None:
        return logits
    return logits[:, -1:].expand(-1, classes).scatter(1, found.kept, logits[:, :-1])


def classes_kept(top_k: int, classes: int) -> int:
    """Return how many of an image's classes are kept by a setting of so many; 0: all."""
    return 0 if top_k >= classes else top_k


class TeacherCache:
    """Predictions of one plan.

    Args:
        folder: where the files are; it must be named after everything that decides the predictions.
        rows: images of an epoch.
        classes: of the teachers.
        temperature: at which the predictions are kept and averaged; all log-probabilities of one teacher serve at any other.
        top_k: how many classes of an image are kept; the rest of its probability is spread evenly over the others. 0: all classes.
        compute: the logits `(N, classes)` of a batch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rows: int,
        classes: int,
        temperature: float,
        top_k: int,
        compute: Callable[[Batch], Tensor],
    ) -> None:
        self.folder, self.rows, self.classes, self.temperature = folder, rows, classes, temperature
        self.top_k = classes_kept(top_k, classes)
        self.compute = compute
        self.computed = 0
        """Images that the teachers had to look at."""
        if self.top_k:  # the last value is that of every other class
            index = ("index", "<u2" if classes <= 1 << 16 else "<u4", (top_k,))
            self._row = np.dtype([("logits", "<f2", (top_k + 1,)), index, ("check", "<u4")])
        else:
            self._row = np.dtype([("logits", "<f2", (classes,)), ("check", "<u4")])

    def size_bytes(self, epochs: int) -> int:
        """Return the size of so many epochs on disk."""
        return epochs * self.rows * self._row.itemsize

    def missing_bytes(self, epochs: int) -> int:
        """Return how much of `size_bytes` the disk has still to give; holes in a file count as missing."""
        present = 0
        for epoch in range(epochs):
            with contextlib.suppress(OSError):
                status = self._path(epoch).stat()
                present += min(status.st_size, status.st_blocks * 512)  # POSIX counts blocks of 512 bytes
        return max(0, self.size_bytes(epochs) - present)

    def __call__(self, batch: Batch) -> Tensor:
        """Return logits `(N, classes)` float32, from which softmax at the temperature makes the teachers' mean prediction.

        They have been rounded to what the file holds, also where they were computed just now: a training does not depend on
        which part of its predictions was there before.

        Raises: OutputError: if they cannot be written.
        """
        rows = self._read(batch)
        if rows is None:
            rows = self._rows_of(encode(self.compute(batch), self.temperature, self.top_k))
            rows["check"] = self._check(rows, batch)
            self.computed += len(batch)
            self._write(batch, rows)
        return upload(self._decode(rows), batch.images.device)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.bin"

    def _read(self, batch: Batch) -> NDArray[np.void] | None:
        """Return the rows of a batch, or None if any of them is not there or cannot be read."""
        size = self._row.itemsize
        try:
            with open_file(self._path(batch.epoch)) as file:
                content = read_at(file.fileno(), len(batch) * size, batch.first_row * size)
        except OSError:
            return None
        if len(content) != len(batch) * size:
            return None
        rows = np.frombuffer(content, self._row)
        return rows if np.array_equal(rows["check"], self._check(rows, batch)) else None

    def _write(self, batch: Batch, rows: NDArray[np.void]) -> None:
        path, content, start = self._path(batch.epoch), memoryview(rows.tobytes()), batch.first_row * self._row.itemsize
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # no truncation, no append: processes write different rows of one file, in any order
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | BINARY, 0o666)
            try:
                while content:  # a disk that is nearly full takes a part, and only then raises
                    written = write_at(descriptor, content, start)
                    content, start = content[written:], start + written
            finally:
                os.close(descriptor)
        except OSError as error:
            target = Target(path, self.rows * self._row.itemsize, "the teacher's predictions", CACHE_DIR)
            raise cannot_write(target, error) from None

    def _rows_of(self, encoded: Encoded) -> NDArray[np.void]:
        """Return the rows of predictions, without their check sums."""
        rows = np.zeros(len(encoded.values), self._row)
        rows["logits"] = encoded.values.cpu().numpy()
        if encoded.kept is not None:
            rows["index"] = encoded.kept.cpu().numpy()
        return rows

    def _check(self, rows: NDArray[np.void], batch: Batch) -> NDArray[np.uint32]:
        """Return a number for each row that depends on its content and its place, and is not 0: that is what holes have."""
        content, size = memoryview(rows.tobytes()), self._row.itemsize
        place = batch.epoch * self.rows + batch.first_row
        sums = (
            zlib.crc32(content[i * size : (i + 1) * size - 4], (place + i) % (1 << 32)) | 1 for i in range(len(rows))
        )
        return np.fromiter(sums, np.uint32, len(rows))

    def _decode(self, rows: NDArray[np.void]) -> Tensor:
        index = torch.from_numpy(rows["index"].astype(np.int64)) if self.top_k else None
        return decode(Encoded(torch.from_numpy(rows["logits"].copy()), index), self.classes)

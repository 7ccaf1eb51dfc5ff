"""Read image files in batches for a network; some of them may not be images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.data.datasets import FolderImages
from convnext_deploy.data.decoding import Encoded, encoded_file
from convnext_deploy.data.items import EvaluationItems
from convnext_deploy.data.workers import Loader
from convnext_deploy.errors import DataError


@dataclass(frozen=True)
class FileBatch:
    """Some files in their order.

    `pixels` are those of them that could be read, `(N, S, S, C)` uint8; `errors` has for each of `paths` why it could not be read,
    or None.
    """

    paths: tuple[Path, ...]
    pixels: NDArray[np.uint8]
    errors: tuple[DataError | None, ...]


@dataclass(frozen=True)
class _NamedFiles(FolderImages):
    """Files, and what the user calls them."""

    names: Sequence[Path]

    def encoded(self, index: int) -> Encoded:
        return Encoded(self.names[index], encoded_file(self.paths[index]).open)


@dataclass(frozen=True)
class FileBatches:
    """Files through the evaluation transform, in their order, decoded as they are needed and not kept.

    What `paths` mean is decided when this is made: a program may go into another folder before they are read.
    """

    paths: Sequence[Path]
    preprocess: Preprocess
    batch_size: int
    workers: int = 0
    _images: _NamedFiles = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find out which files are meant."""
        files = tuple(path.absolute() for path in self.paths)
        object.__setattr__(self, "_images", _NamedFiles(files, np.zeros(len(files), np.int64), self.paths))

    def __iter__(self) -> Iterator[FileBatch]:
        """Yield batches of `batch_size` files; only the last one may have fewer."""
        count, size = len(self.paths), self.batch_size
        chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
        loader = Loader(EvaluationItems(self._images, self.preprocess), size, self.workers)
        try:
            for (pixels, errors), chunk in zip(loader.load(chunks), chunks, strict=True):
                readable = [row for row in range(len(chunk)) if row not in errors]
                paths = tuple(self.paths[index] for index in chunk)
                yield FileBatch(paths, pixels[readable], tuple(errors.get(row) for row in range(len(chunk))))
        finally:
            loader.close()

"""A teacher that is a file: a vector for each image by its name, written by any program."""

from __future__ import annotations

import contextlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from convnext_deploy.data.ahead import upload
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.image_sets import TaughtImages
from convnext_deploy.data.loaders import Batch
from convnext_deploy.data.pixels import IMAGE_EXTENSIONS
from convnext_deploy.errors import BackendUnavailableError, CheckpointError, DataError, first_line

Content = Literal["logits", "probabilities", "features"]
SUFFIXES = (".safetensors", ".parquet")
_COLUMNS = {"logits": "logits", "probabilities": "probabilities", "probs": "probabilities"} | dict.fromkeys(
    ("features", "embedding", "embeddings", "feature"), "features"
)
_NAME_COLUMNS = ("file", "filename", "file_name", "path", "image", "image_path", "name")
_SMALLEST = 1e-30  # a probability of 0 has no logarithm


@dataclass(frozen=True)
class PredictionFile:
    """Vectors `(N, width)` float32 of the images `names`; `class_names` of the columns where the file tells them."""

    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    content: Content | None
    class_names: tuple[str, ...] | None


def holds_predictions(path: Path) -> bool:
    """Whether a file holds vectors by the names of images, and no weights."""
    if path.suffix == ".parquet":
        return True
    if path.suffix != ".safetensors":
        return False
    with contextlib.suppress(SafetensorError, OSError, MemoryError), safe_open(path, framework="numpy") as file:
        keys = list(file.keys())
        return "files" in (file.metadata() or {}) or (bool(keys) and all(_is_image(key) for key in keys[:100]))
    return False


def read_predictions(path: Path) -> PredictionFile:
    """Read a file of predictions.

    safetensors: a tensor of one dimension for each image, called as its file; or one tensor `(N, width)` called `logits`,
    `probabilities` or `features`, and in the metadata `files`, a JSON list of N names. The metadata may hold `content`, which of
    the three it is, and `class_names`, a JSON list. Parquet: a column with the names (`file`, `path`, …) and a column of lists
    called as above, or a column of numbers for each class, called as the class.

    Raises:
        BackendUnavailableError: if it is Parquet and pyarrow is missing.
        CheckpointError: if it is none of these, or has numbers that are not finite.
    """
    found = _read_parquet(path) if path.suffix == ".parquet" else _read_safetensors(path)
    if not found.names:
        raise CheckpointError(f"{path} holds no predictions; expected a vector for each image.")
    if not np.isfinite(found.vectors).all():
        row = int(np.flatnonzero(~np.isfinite(found.vectors).all(1))[0])
        raise CheckpointError(f"{path} has a number that is not finite for {found.names[row]!r}.")
    if found.class_names is not None and len(found.class_names) != found.vectors.shape[1]:
        raise CheckpointError(
            f"{path} names {len(found.class_names)} classes, and its vectors have {found.vectors.shape[1]} numbers."
        )
    return found


class PredictionTable:
    """The vectors of a file in the order of the training images.

    Args:
        path: the file.
        data: whose training images are looked up by their names: as written, or by as many of their last folders as it takes.
        content: what the vectors are.
        temperature: at which logits of mixed images are mixed.
        outputs: the column of each class, `(classes,)`; None: they are in order.

    Raises: DataError: if an image has no vector, two have the same, or the data are no folder.
    """

    def __init__(
        self,
        path: Path,
        data: Data,
        content: Content,
        temperature: float = 1.0,
        outputs: NDArray[np.int64] | None = None,
    ) -> None:
        found = read_predictions(path)
        vectors = torch.from_numpy(found.vectors[find_rows(found.names, data, path)])
        if outputs is not None:
            vectors = vectors[:, torch.from_numpy(outputs)]
        if content == "probabilities":
            vectors = vectors.clamp(min=_SMALLEST).log()
        self.vectors, self.temperature, self.is_features = vectors, temperature, content == "features"

    def __call__(self, batch: Batch) -> Tensor:
        """Return the vectors `(N, width)` of a batch on its device, mixed as its images are.

        Logits are mixed as probabilities: the result's softmax at the temperature is the weighted mean.
        """
        assert batch.numbers is not None  # batches of a training set have numbers
        own = self.vectors[batch.numbers]
        if batch.mixed_in is not None and batch.weight < 1.0:
            other = self.vectors[batch.mixed_in]
            if self.is_features:
                own = torch.lerp(other, own, batch.weight)
            else:
                both = [F.log_softmax(each / self.temperature, dim=1) for each in (own, other)]
                weights = torch.tensor([batch.weight, 1.0 - batch.weight]).clamp(min=_SMALLEST).log()
                own = self.temperature * torch.logsumexp(torch.stack(both) + weights[:, None, None], dim=0)
        return upload(own, batch.images.device)


def find_rows(names: Sequence[str], data: Data, path: Path) -> NDArray[np.int64]:
    """Return for each training image the place of its name, `(N,)`. Raises: DataError: see `PredictionTable`."""
    images, unlabelled = _paths_of(data, path)
    places: dict[tuple[str, ...], int] = {}
    for row, name in enumerate(names):
        if places.setdefault(_parts(name), row) != row:
            raise DataError(f"{path} has two vectors for {name!r}; expected one for each image.")
    longest = max(map(len, places))

    def find(image: Path) -> int:
        parts = _parts(str(image))
        ends = (parts[-count:] for count in range(min(longest, len(parts)), 0, -1))
        return next((places[end] for end in ends if end in places), -1)

    found = np.array([find(image) for image in images], np.int64)
    if missing := [images[place] for place in np.flatnonzero(found < 0)]:
        raise DataError(
            f"{path} has no vector for {len(missing)} of {len(images)} training images, such as {missing[0]}; its names are like "
            f"{names[0]!r}."
        )
    if len(np.unique(found)) < len(found):
        raise DataError(
            f"{path} has the same name for several training images; name them with their folders, such as "
            f"{'/'.join(_parts(str(images[0]))[-2:])!r}."
        )
    # of two folders the same name may mean two images: what is said of one that judges is not taken for one without a label
    meant = dict(zip(found[len(images) - unlabelled :].tolist(), images[len(images) - unlabelled :], strict=True))
    for judging in (data.validation, data.test) if meant else ():
        for other in judging.paths if isinstance(judging, FolderImages) else ():
            if (image := meant.get(find(other))) is not None:
                raise DataError(
                    f"{path} has a name, {names[find(other)]!r}, that fits {image} and {other}; name them with more of their "
                    "folders."
                )
    return found


def _paths_of(data: Data, path: Path) -> tuple[tuple[Path, ...], int]:
    """Return the files of all training images, and how many of them, at the end, have no labels."""
    images = data.train
    parts = (images.labelled, images.unlabelled) if isinstance(images, TaughtImages) else (images,)
    paths: list[Path] = []
    for part in parts:
        if not isinstance(part, FolderImages):
            raise DataError(
                f"{path} names files, and {data.name} is no folder of images; a file of predictions teaches with a folder."
            )
        paths += part.paths
    return tuple(paths), len(parts[1]) if len(parts) > 1 else 0


def _parts(name: str) -> tuple[str, ...]:
    """Return the folders and the file of a name, whichever system wrote it."""
    text = unicodedata.normalize("NFC", name.replace("\\", "/"))
    return tuple(part for part in PurePosixPath(text).parts if part not in ("/", "."))


def _is_image(name: str) -> bool:
    return PurePath(name).suffix.lower() in IMAGE_EXTENSIONS


def _read_safetensors(path: Path) -> PredictionFile:
    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            class_names = _list(told.get("class_names"), path, "class_names")
            names = _list(told.get("files"), path, "files")
            keys = list(file.keys())
            if names is None:
                vectors = _stack([file.get_tensor(key) for key in keys], keys, path)
                return PredictionFile(tuple(keys), vectors, _content(told.get("content"), path), class_names)
            key = next((key for key in keys if key in _COLUMNS), None)
            if key is None or len(keys) != 1:
                raise CheckpointError(
                    f"{path} holds {', '.join(keys[:5])}; expected one tensor called logits or features."
                )
            vectors = file.get_tensor(key).astype(np.float32)
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({first_line(error)}).") from None
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise CheckpointError(f"{path} names {len(names)} files, and its {key} have shape {vectors.shape}.")
    return PredictionFile(names, vectors, _content(told.get("content", key), path), class_names)


def _read_parquet(path: Path) -> PredictionFile:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise BackendUnavailableError(f"{path} is read by pyarrow: pip install 'convnext_deploy[teachers]'.") from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise CheckpointError(f"{path} is not a readable Parquet file ({first_line(error)}).") from None
    columns = list(table.column_names)
    names = next((column for column in _NAME_COLUMNS if column in columns), None)
    if names is None:
        raise CheckpointError(
            f"{path} has columns {', '.join(columns[:8])}; expected one of {', '.join(_NAME_COLUMNS)}."
        )
    files = tuple(map(str, table[names].to_pylist()))
    told = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items() if key in _TOLD}
    held = next((column for column in columns if column.lower() in _COLUMNS), None)
    if held is not None:
        vectors = _stack([np.asarray(row, np.float32) for row in table[held].to_pylist()], files, path)
        content = _content(told.get("content", held.lower()), path)
        return PredictionFile(files, vectors, content, _list(told.get("class_names"), path, "class_names"))
    classes = tuple(column for column in columns if column != names)
    try:
        stacked = np.stack([np.asarray(table[column].to_pylist(), np.float32) for column in classes], axis=1)
    except (ValueError, TypeError):
        raise CheckpointError(f"{path} has a column that does not hold numbers.") from None
    return PredictionFile(files, stacked, _content(told.get("content"), path), classes)


_TOLD = (b"content", b"class_names")


def _stack(rows: list[Any], names: Sequence[str], path: Path) -> NDArray[np.float32]:
    if not rows:
        return np.zeros((0, 0), np.float32)
    for row, name in zip(rows, names, strict=True):
        if row.ndim != 1 or row.shape != rows[0].shape or not len(row):
            raise CheckpointError(
                f"{path} has shape {row.shape} for {name!r} and {rows[0].shape} for {names[0]!r}; expected vectors of one length."
            )
    return np.stack(rows).astype(np.float32)


def _list(text: str | None, path: Path, what: str) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise CheckpointError(f"the metadata of {path} has {what} that are no JSON list of names.")
    return tuple(found)


def _content(name: str | None, path: Path) -> Content | None:
    if name is None:
        return None
    if name not in _COLUMNS:
        raise CheckpointError(f"{path} says that it holds {name[:40]!r}; expected logits, probabilities or features.")
    known: Mapping[str, Any] = _COLUMNS
    content: Content = known[name]
    return content

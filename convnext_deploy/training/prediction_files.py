"""A file of predictions: a vector for each image by its name, written by any program, and what the vectors are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from convnext_deploy.data.pixels import IMAGE_EXTENSIONS
from convnext_deploy.errors import CheckpointError, first_line
from convnext_deploy.training.parquet_columns import ParquetColumns
from convnext_deploy.training.stored_tensors import read_numbers

Content = Literal["logits", "probabilities", "features"]
_COLUMNS: dict[str, Content] = {"logits": "logits", "probabilities": "probabilities", "probs": "probabilities"}
_COLUMNS |= dict.fromkeys(("features", "embedding", "embeddings", "feature"), "features")
_NAME_COLUMNS = ("file", "filename", "file_name", "path", "image", "image_path", "name")
_TOLD = (b"content", b"class_names")
_ROUNDING = 1e-2  # by which a sum of probabilities may miss 1: bfloat16 rounds each by up to 0.4 %
_SHOWN = 8  # names in a message


@dataclass(frozen=True)
class PredictionFile:
    """Vectors `(N, width)` float32 of the images `names`; `class_names` of the columns where the file tells them.

    `told`: what the file says that they are, None: it does not. `unused`: columns of other vectors, which are not read.
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    told: Content | None
    class_names: tuple[str, ...] | None
    unused: tuple[str, ...] = ()

    @property
    def content(self) -> Content:
        """What the vectors are: what the file says, or else what the numbers show."""
        return self.told or ("probabilities" if self.are_probable else "logits")

    @cached_property
    def are_probable(self) -> bool:
        """Whether the numbers of every image are what probabilities of classes are: none below 0, and a sum of 1."""
        return self.vectors.shape[1] > 1 and not self.improbable.any()

    @property
    def improbable(self) -> NDArray[np.bool_]:
        """Whether the numbers of an image can be no probabilities, `(N,)`."""
        found: NDArray[np.bool_] = (self.vectors.min(axis=1) < 0) | (abs(self.sums - 1) > _ROUNDING)
        return found

    @cached_property
    def sums(self) -> NDArray[np.float64]:
        """The sum of the numbers of each image, `(N,)`."""
        found: NDArray[np.float64] = self.vectors.sum(axis=1, dtype=np.float64)
        return found

    def describe(self, file: str) -> tuple[str, ...]:
        """Return what the user should know of a file of that name, a line each: what it holds, and what is doubtful in that."""
        count, width = self.vectors.shape
        text = f"{file}: {self.content} of {width:,} numbers for {count:,} images"
        if self.told is None:
            looks = "; they are at least 0, and those of each image sum to 1" if self.content == "probabilities" else ""
            text += f", which is assumed: the file does not say what they are{looks}"
        if self.unused:
            text += f"; its {', '.join(self.unused)} are not used"
        if count > 1 and (self.vectors == self.vectors[0]).all():
            return (
                text,
                f"WARNING: {file} has the same numbers for all {count:,} images; nothing can be learned from that.",
            )
        if self.told == "logits" and self.are_probable:
            return (
                text,
                f"WARNING: {file} says that it holds logits, and all numbers are at least 0 and sum to 1 for each image, as "
                "probabilities do; if they are, say content = 'probabilities' in its metadata.",
            )
        return (text,)


def holds_predictions(path: Path) -> bool:
    """Whether a file holds vectors by the names of images, and no weights; also where it lacks what is needed to read them."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return True
    if suffix != ".safetensors":
        return False
    with contextlib.suppress(SafetensorError, OSError, MemoryError), safe_open(path, framework="numpy") as file:
        keys, told = list(file.keys()), file.metadata() or {}
        if "files" in told or (len(keys) == 1 and keys[0] in _COLUMNS):
            return True
        first = keys[:100]
        if not first or all(map(_is_image, first)):
            return bool(first)
        # names without an ending: no network consists of vectors of one length alone, in folders
        shapes = {tuple(file.get_slice(key).get_shape()) for key in first}
        return all("/" in key for key in first) and len(shapes) == 1 and len(shapes.pop()) == 1
    return False


def read_predictions(path: Path) -> PredictionFile:
    """Read a file of predictions.

    safetensors: a tensor of one dimension for each image, called as its file; or one tensor `(N, width)` called `logits`,
    `probabilities` or `features`, and in the metadata `files`, a JSON list of N names. The metadata may hold `content`, which of
    the three it is, and `class_names`, a JSON list. Parquet: a column with the names (`file`, `path`, …) and a column of lists
    called as above, or a column of numbers for each class, called as the class; beside floating numbers, integers are labels or
    numbers of rows, and stand for no class. Of several columns of lists that of `content` counts, or else logits, probabilities
    and features in this order.

    Raises:
        BackendUnavailableError: if it is Parquet and pyarrow is missing.
        CheckpointError: if it is none of these, has numbers that are not finite, or says that it holds probabilities, and they are
            none.
    """
    found = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_safetensors(path)
    _check_names(found.names, path)
    if not np.isfinite(found.vectors).all():
        row = int(np.flatnonzero(~np.isfinite(found.vectors).all(1))[0])
        raise CheckpointError(f"{path} has a number that is not finite for {found.names[row]!r}.")
    if found.class_names is not None and len(found.class_names) != found.vectors.shape[1]:
        raise CheckpointError(
            f"{path} names {len(found.class_names)} classes, and its vectors have {found.vectors.shape[1]} numbers."
        )
    if found.told == "probabilities" and found.improbable.any():
        row = int(np.flatnonzero(found.improbable)[0])
        least, sum_ = found.vectors[row].min(), found.sums[row]
        raise CheckpointError(
            f"{path} says that it holds probabilities, and those of {found.names[row]!r} "
            + (f"have {least:.4g} among them" if least < 0 else f"sum to {sum_:.4g}")
            + "; expected numbers of 0 to 1 that sum to 1 for each image. If they are logits, call them so; "
            "leave out columns that are no classes."
        )
    return found


def read_names(path: Path) -> tuple[str, ...]:
    """Return the names in a file of predictions without reading its vectors, which may be many gigabytes.

    Raises: DeployError: as `read_predictions`, but for what only the vectors show.
    """
    if path.suffix.lower() == ".parquet":
        table = ParquetColumns(path)
        names = table.texts(_name_column(table, path))
    else:
        with _safetensors(path) as file:
            told = _list((file.metadata() or {}).get("files"), path, "files")
            names = tuple(file.keys()) if told is None else told
    _check_names(names, path)
    return names


def _check_names(names: Sequence[str], path: Path) -> None:
    if not names:
        raise CheckpointError(f"{path} holds no predictions; expected a vector for each image.")


def _is_image(name: str) -> bool:
    return PurePath(name).suffix.lower() in IMAGE_EXTENSIONS


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({first_line(error)}).") from None


def _read_safetensors(path: Path) -> PredictionFile:
    with _safetensors(path) as file:
        told = file.metadata() or {}
        class_names = _list(told.get("class_names"), path, "class_names")
        names = _list(told.get("files"), path, "files")
        keys = list(file.keys())
        if names is None:
            _check_keys(keys, path)
            vectors = _stack([read_numbers(file, key, path) for key in keys], keys, path)
            return PredictionFile(tuple(keys), vectors, _content(told.get("content"), path), class_names)
        key = next((key for key in keys if key in _COLUMNS), None)
        if key is None or len(keys) != 1:
            raise CheckpointError(f"{path} holds {', '.join(keys[:5])}; expected one tensor called logits or features.")
        vectors = read_numbers(file, key, path)
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise CheckpointError(f"{path} names {len(names)} files, and its {key} have shape {vectors.shape}.")
    return PredictionFile(names, vectors, _content(told.get("content", key), path), class_names)


def _check_keys(keys: Sequence[str], path: Path) -> None:
    """Check that tensors are called as images, where no list of names is. Raises: CheckpointError: if not."""
    other = next((key for key in keys if not _is_image(key)), None)
    if other in _COLUMNS and len(keys) == 1:
        raise CheckpointError(
            f"{path} has a tensor {other!r} and does not say of which images; expected in its metadata 'files', a JSON list of "
            "their names."
        )
    if other is not None:
        raise CheckpointError(
            f"{path} has a tensor {other!r}, which is no name of an image file; expected names with their ending, such as "
            "'cat/001.jpg'."
        )


def _read_parquet(path: Path) -> PredictionFile:
    table = ParquetColumns(path)
    names = _name_column(table, path)
    files = table.texts(names)
    told = _decode(table.metadata, path)
    content = _content(told.get("content"), path)
    held = _order_columns(table.names, content)
    if held:
        vectors = _stack(table.lists(held[0], files), files, path)
        class_names = _list(told.get("class_names"), path, "class_names")
        return PredictionFile(files, vectors, content or _COLUMNS[held[0].lower()], class_names, tuple(held[1:]))
    others = [column for column in table.names if column != names]
    whole = [table.is_whole(column) for column in others]
    unused = tuple(column for column, is_whole in zip(others, whole, strict=True) if is_whole and not all(whole))
    classes = tuple(column for column in others if column not in unused)
    if not classes:
        raise CheckpointError(
            f"{path} has the column {names} alone; expected one of lists, called logits, or one for each class."
        )
    stacked = np.stack([table.numbers(column) for column in classes], axis=1)
    return PredictionFile(files, stacked, content, classes, unused)


def _name_column(table: ParquetColumns, path: Path) -> str:
    """Return the column that names the images. Raises: CheckpointError: if there is none."""
    found = next((column for column in _NAME_COLUMNS if column in table.names), None)
    if found is None:
        raise CheckpointError(
            f"{path} has columns {', '.join(table.names[:_SHOWN])}; expected one of {', '.join(_NAME_COLUMNS)}."
        )
    return found


def _order_columns(columns: Sequence[str], told: Content | None) -> list[str]:
    """Return the columns that are called as vectors are: that which the file means first, then logits before features."""
    known = [column for column in columns if column.lower() in _COLUMNS]
    order = list(_COLUMNS)
    return sorted(known, key=lambda name: (told not in (None, _COLUMNS[name.lower()]), order.index(name.lower())))


def _stack(rows: list[Any], names: Sequence[str], path: Path) -> NDArray[np.float32]:
    if not rows:
        return np.zeros((0, 0), np.float32)
    for row, name in zip(rows, names, strict=True):
        if row.ndim != 1 or row.shape != rows[0].shape or not len(row):
            raise CheckpointError(
                f"{path} has shape {row.shape} for {name!r} and {rows[0].shape} for {names[0]!r}; expected vectors of one length."
            )
    return np.stack(rows).astype(np.float32, copy=False)


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


def _decode(metadata: Mapping[bytes, bytes], path: Path) -> dict[str, str]:
    """Return what a Parquet file says of its vectors. Raises: CheckpointError: if that is no text."""
    try:
        return {key.decode(): value.decode() for key, value in metadata.items() if key in _TOLD}
    except UnicodeDecodeError:
        raise CheckpointError(f"the metadata of {path} are no text in UTF-8.") from None


def _content(name: str | None, path: Path) -> Content | None:
    if name is None:
        return None
    if name.lower() not in _COLUMNS:
        raise CheckpointError(f"{path} says that it holds {name[:40]!r}; expected logits, probabilities or features.")
    return _COLUMNS[name.lower()]

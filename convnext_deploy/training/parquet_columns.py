"""The columns of a Parquet file, each read when it is asked for.

Numbers never become objects of Python, which take twelve times as much memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.errors import BackendUnavailableError, CheckpointError, first_line

_ROWS = 1024  # that are decoded at once


class ParquetColumns:
    """A file, of which only the names of its columns and the metadata have been read.

    Raises:
        BackendUnavailableError: if pyarrow is missing.
        CheckpointError: if it is no such file.
    """

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import ArrowException, ListScalar, parquet, types
        except ImportError:
            raise BackendUnavailableError(
                f"{path} is read by pyarrow: pip install 'convnext_deploy[teachers]'."
            ) from None
        self._path, self._errors, self._list = path, (ArrowException, OSError), ListScalar
        self._is_integer, self._is_floating = types.is_integer, types.is_floating
        try:
            self._file = parquet.ParquetFile(path)
        except self._errors as error:
            raise self._unreadable(error) from None
        self._schema = self._file.schema_arrow
        self.names: list[str] = list(self._schema.names)
        self.metadata: dict[bytes, bytes] = self._schema.metadata or {}

    def is_whole(self, name: str) -> bool:
        """Whether a column is of integers."""
        return bool(self._is_integer(self._schema.field(name).type))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a column as text. Raises: CheckpointError: if it cannot be read."""
        return tuple(str(text) for part in self._parts(name) for text in part.to_pylist())

    def numbers(self, name: str) -> NDArray[np.float32]:
        """Return a column of numbers, NaN where there is none. Raises: CheckpointError: if it holds something else."""
        try:
            parts = [np.asarray(self._plain(part), np.float32) for part in self._parts(name)]
        except (ValueError, TypeError):
            raise CheckpointError(f"{self._path} has a column that does not hold numbers.") from None
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def lists(self, name: str, files: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return the lists of a column, those of `files`.

        Raises: CheckpointError: if it holds something else, or one is missing.
        """
        rows = []
        for scalar, file in zip(chain.from_iterable(self._parts(name)), files, strict=True):
            is_list = isinstance(scalar, self._list) and scalar.is_valid
            value = self._plain(scalar.values) if is_list else scalar.as_py()
            if value is None:
                raise CheckpointError(f"{self._path} has no vector for {file!r}: its row of {name!r} is empty.")
            # text is not parsed: a list that is one was written by a program that meant something else
            if not isinstance(value, list | np.ndarray) or any(isinstance(each, str | bytes) for each in value[:1]):
                raise self._no_lists(name, value, file)
            try:
                rows.append(np.asarray(value, np.float32))
            except (ValueError, TypeError, OverflowError):
                raise self._no_lists(name, value, file) from None
        return rows

    def _parts(self, name: str) -> Iterator[Any]:
        """Yield a column part by part: what decoding needs beside the values is several times their size."""
        try:
            for batch in self._file.iter_batches(_ROWS, columns=[name]):
                yield batch.column(name)
        except self._errors as error:
            raise self._unreadable(error) from None

    def _plain(self, values: Any) -> NDArray[Any] | list[Any]:
        """Return numbers as an array, and anything else as what it is in Python."""
        if self._is_integer(values.type) or self._is_floating(values.type):
            found: NDArray[Any] = values.to_numpy(zero_copy_only=False)
            return found
        return list(values.to_pylist())

    def _unreadable(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self._path} is not a readable Parquet file ({first_line(error)}).")

    def _no_lists(self, name: str, value: object, file: str) -> CheckpointError:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}…"
        return CheckpointError(
            f"{self._path}: its column {name!r} does not hold lists of numbers, but {type(value).__name__} such as {shown} for "
            f"{file!r}; write each row as a list of floats."
        )

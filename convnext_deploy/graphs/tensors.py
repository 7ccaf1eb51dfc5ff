"""Read tensors of an ONNX file, which may lie in a file beside it: types by name, values, sizes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.errors import ArtifactError

_SHORT_NAMES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "FP64",
}


def short_name(data_type: int) -> str:
    """Return `FP16` for a `TensorProto` type, and so on; `?` where it is not known."""
    if data_type == TensorProto.UNDEFINED:
        return "?"
    named = next((name for kind, name in _SHORT_NAMES.items() if kind == data_type), None)
    return named or str(TensorProto.DataType.Name(data_type))


def read_tensor(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """Return the values of a tensor; those in a file beside the graph are mapped, not read."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape, offset = tuple(tensor.dims), int(place.get("offset", 0))
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(folder / place["location"], dtype, "r", offset, shape)


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the bytes that the values of a tensor take."""
    half = tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)
    size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize if tensor.data_type != TensorProto.STRING else 0
    return int(math.prod(tensor.dims)) * int(size) // (2 if half else 1)


def check_external(tensors: Iterable[TensorProto], path: Path) -> None:
    """Check that the files are there in which the ONNX file at `path` keeps tensors.

    Raises: ArtifactError: if one of them is missing or too short.
    """
    ends: dict[str, int] = defaultdict(int)
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
            ends[place.get("location", "")] = max(ends[place.get("location", "")], end)
    for location, end in ends.items():
        data = path.parent / location
        if not data.resolve().is_relative_to(path.parent.resolve()):
            raise ArtifactError(
                f"{path} points to weights outside its folder, '{location}'; expected a file beside it."
            )
        found = data.stat().st_size if location and data.is_file() else None
        if found is None or found < end:
            state = "is missing" if found is None else f"has {found} bytes of the {end} expected"
            raise ArtifactError(
                f"{path} keeps its weights in '{location}' beside it, which {state}; copy both files together."
            )

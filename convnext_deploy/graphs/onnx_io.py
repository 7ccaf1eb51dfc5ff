"""Read and write ONNX files with the metadata inside, name their nodes, and read tensors, which may lie in a file beside."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.errors import ArtifactError, ExportError, first_line

OPSET = 20  # the newest that TensorRT 10.0 reads; it has single Gelu and LayerNormalization nodes
INPUT_NAME, OUTPUT_NAME = "images", "logits"
METADATA_KEY = "convnext_deploy"
_SHORT_NAMES: dict[int, str] = {
    TensorProto.UNDEFINED: "?",
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "FP64",
}


def save_onnx(proto: onnx.ModelProto, path: Path, metadata: Mapping[str, Any]) -> None:
    """Check the model and write it with `metadata` (JSON) inside, its nodes named by `name_nodes`.

    Raises: ExportError: if the ONNX checker finds it invalid.
    """
    saved = onnx.ModelProto()
    saved.CopyFrom(proto)
    entry = saved.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(metadata, sort_keys=True)
    name_nodes(saved.graph)
    try:
        onnx.checker.check_model(saved, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {first_line(error)}") from error
    for node in saved.graph.node:
        node.doc_string = ""
    path.write_bytes(saved.SerializeToString(deterministic=True))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises: ArtifactError: if it is missing or not an ONNX file.
    """
    try:
        proto = onnx.load(path)
    except FileNotFoundError:
        raise ArtifactError(f"there is no ONNX file {path}.") from None
    except Exception as error:
        # protobuf's DecodeError has no public home that is the same in all its implementations
        raise ArtifactError(f"{path} is not a readable ONNX file ({first_line(error)}).") from None
    if not proto.graph.node:
        raise ArtifactError(f"{path} is not a readable ONNX file: it has no graph.")
    return proto


def read_metadata(proto: onnx.ModelProto) -> dict[str, Any]:
    """Return what `save_onnx` put inside; empty for a file of another origin.

    Raises: ArtifactError: if it is not JSON.
    """
    text = next((p.value for p in proto.metadata_props if p.key == METADATA_KEY), "{}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the ONNX file has damaged metadata ({error}); export it again.") from None
    return found if isinstance(found, dict) else {}


def tensor_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return the shape of a graph input or output; None where a dimension is dynamic."""
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Name every node after its layer and its operator, `stages.0.0.pwconv1/MatMul`, a second one `…/MatMul_2`, in place.

    Those of no layer go by their operator. Profilers, TensorRT and viewers show these names.

    Args:
        graph: its nodes carry the names of their layers in `doc_string`.
    """
    taken: Counter[str] = Counter()
    for node in graph.node:
        name = "/".join(filter(None, (node.doc_string, node.op_type)))
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def layer_of_node(name: str) -> str:
    """Return the layer in a name that `name_nodes` gave; empty where there is none."""
    return name.rpartition("/")[0]


def short_name(data_type: int) -> str:
    """Return `FP16` for a `TensorProto` type, and so on; `?` where it is not known."""
    return _SHORT_NAMES.get(data_type) or str(TensorProto.DataType.Name(data_type))


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
            location, end = place.get("location", ""), int(place.get("offset", 0)) + int(place.get("length", 0))
            ends[location] = max(ends[location], end)
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
